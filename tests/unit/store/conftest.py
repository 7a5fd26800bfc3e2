"""Settings whose root is a local folder: the store's rules are the same there as on S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.settings import settings
from tasks.store import ObjectStore


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setenv("CHIPLINE_ROOT", str(folder))
    settings.cache_clear()
    yield str(folder)
    settings.cache_clear()


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore()
