"""What earlier versions put on a server is taken away; a person's own stays."""

from __future__ import annotations

import json

import httpx
import pytest

from infra.local.errors import StackError
from infra.local.server_data import retire


def test_the_automations_of_earlier_versions_go_and_others_stay() -> None:
    present = {"1": "chipline-dead-runs", "2": "chipline-runs-that-never-began", "3": "mine"}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            del present[request.url.path.rpartition("/")[2]]
            return httpx.Response(204)
        names = json.loads(request.content)["automations"]["name"]["any_"]
        found = [{"id": key, "name": name} for key, name in present.items() if name in names]
        return httpx.Response(200, json=found)

    with httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer)) as http:
        retire(http)
        retire(http)
    assert present == {"3": "mine"}


def test_a_refusal_is_told() -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(401, text="who are you"))
    with (
        httpx.Client(base_url="http://test", transport=transport) as http,
        pytest.raises(StackError, match="refused to list its automations with 401: who are you"),
    ):
        retire(http)
