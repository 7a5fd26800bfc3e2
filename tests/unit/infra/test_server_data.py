"""An automation is written again only where it differs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from infra.local.server_data import AUTOMATIONS_FILE, _says_the_same


@pytest.fixture
def automation() -> dict[str, Any]:
    first: dict[str, Any] = yaml.safe_load(AUTOMATIONS_FILE.read_text())["automations"][0]
    return first


def as_the_server_tells(automation: dict[str, Any]) -> dict[str, Any]:
    told = copy.deepcopy(automation)
    told["id"] = "made by the server"
    told["trigger"]["expect"] = sorted(told["trigger"]["expect"], reverse=True)
    told["trigger"]["within"] = float(told["trigger"]["within"])
    told["trigger"]["match_related"] = {}
    return told


def test_defaults_and_order_make_no_difference(automation: dict[str, Any]) -> None:
    assert _says_the_same(automation, as_the_server_tells(automation))


@pytest.mark.parametrize("change", [("within", 60), ("after", []), ("posture", "Reactive")])
def test_a_change_is_seen(automation: dict[str, Any], change: tuple[str, Any]) -> None:
    told = as_the_server_tells(automation)
    told["trigger"][change[0]] = change[1]
    assert not _says_the_same(automation, told)
