"""The doctor asks a real store with the shell's own keys."""

from __future__ import annotations

from typing import Any

import pytest

from infra.doctor.services import service_findings
from tasks.settings import StoreAccess, settings


@pytest.mark.parametrize(
    ("who", "change", "state"),
    [
        ("admin", {}, "good"),
        ("reader", {}, "good"),
        ("admin", {"secret_key": "wrong"}, "problem"),
        ("reader", {"prefix": "s3://another"}, "problem"),
        ("admin", {"prefix": "s3://not-there"}, "problem"),
    ],
)
def test_store_answers_with_these_keys_or_not(
    server: Any, monkeypatch: pytest.MonkeyPatch, who: str, change: dict[str, str], state: str
) -> None:
    access: StoreAccess = getattr(server, who)
    given = access.model_dump() | {"secret_key": access.secret_key.get_secret_value()} | change  # type: ignore[union-attr]
    changed = StoreAccess(**given)
    monkeypatch.setattr(settings(), "root", f"{changed.prefix}/root")
    monkeypatch.setattr(settings(), "stores", [changed])
    (store, *_) = service_findings({})
    assert store.state == state, store
    assert "secret-of-the-test" not in store.detail
