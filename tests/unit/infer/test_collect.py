"""Leases and the collector of garbage, on a local store; the same against S3 in the integration tests."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import RunError, StoreError
from tasks.infer import leases
from tasks.infer.collect import Collection, Collector
from tasks.infer.leases import HeldLease, Turns, leased, wait_for_turn
from tasks.infer.parameters_collect import Garbage
from tasks.settings import settings
from tasks.store import ObjectStore

ALL: tuple[Garbage, ...] = ("SHARDS", "UNFINISHED_FOLDERS", "HALF_UPLOADS")
KEYS = [f"{number:064x}" for number in range(6)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.01)
    settings.cache_clear()
    yield tmp_path / "root"
    settings.cache_clear()


@pytest.fixture
def store(root: Path) -> ObjectStore:
    assert not root.exists()
    return ObjectStore()


def put(store: ObjectStore, root: Path, path: str, *, days: float, data: bytes = b"1234") -> str:
    """An object that was written so many days ago."""
    uri = str(root / path)
    store.put(uri, data)
    then = time.time() - days * 86_400
    os.utime(uri, (then, then))
    return uri


def put_plan(store: ObjectStore, root: Path, keys: list[str], *, days: float, run: str = "a") -> str:
    data = json.dumps({"shards": [{"key": key} for key in keys]}).encode()
    return put(store, root, f"outputs/classify_pixels/x/{run * 64}/plan-1.json", days=days, data=data)


def collect(store: ObjectStore, *, dry_run: bool = False, marked: Any = None) -> Collection:
    collector = Collector(store, older_than=timedelta(days=30), grace=timedelta(days=7), marked=marked)
    return collector.run(ALL, dry_run=dry_run)


def there(root: Path, kind: str) -> list[str]:
    return sorted(path.name for path in (root / kind).rglob("*") if path.is_file())


def test_old_shards_go_and_young_and_leased_ones_stay(store: ObjectStore, root: Path) -> None:
    for key, days in zip(KEYS[:4], (40, 40, 40, 20), strict=True):
        put(store, root, f"shards/{key}", days=days)
    put(store, root, f"shards/{KEYS[4]}-batch-2", days=40)
    with leased(store, put_plan(store, root, [KEYS[1], KEYS[4]], days=1)):
        found = collect(store, dry_run=True)
        assert (found.kinds[0].found, found.kinds[0].found_bytes) == (2, 8)
        assert (found.kinds[0].deleted, found.leases) == (0, 1)
        assert len(there(root, "shards")) == 5

        found = collect(store)
        shards = found.kinds[0]
        assert (shards.deleted, shards.deleted_bytes, shards.needed, shards.young) == (2, 8, 2, 1)
        assert there(root, "shards") == sorted([KEYS[1], KEYS[3], f"{KEYS[4]}-batch-2"])
    assert not there(root, "leases/runs")
    collect(store)
    assert there(root, "shards") == [KEYS[3]]


def test_a_run_that_ended_badly_keeps_its_shards_for_the_grace_time(store: ObjectStore, root: Path) -> None:
    put(store, root, f"shards/{KEYS[0]}", days=40)
    plan = put_plan(store, root, [KEYS[0]], days=40)
    with pytest.raises(ValueError, match="killed"), leased(store, plan) as lease:
        raise ValueError("killed")
    collect(store)
    assert there(root, "shards") == [KEYS[0]]
    assert there(root, "outputs") == ["plan-1.json"]

    then = time.time() - 8 * 86_400
    os.utime(lease.uri, (then, then))
    found = collect(store)
    assert found.leases_expired == 1
    assert not there(root, "shards")
    assert not there(root, "outputs")
    assert not there(root, "leases/runs")
    # The run was only asleep: it learns that it has to look again, and is under lease once more.
    lease.keep()
    assert not lease.held_all_along()
    assert lease.held_all_along()
    assert len(there(root, "leases/runs")) == 1


def test_a_lease_is_renewed_when_that_is_due(
    store: ObjectStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leased(store, put_plan(store, root, [], days=0)) as lease:
        before = store.stat(lease.uri).etag
        lease.keep()
        assert store.stat(lease.uri).etag == before
        monkeypatch.setattr(leases, "RENEW_SECONDS", -1.0)
        lease.keep()
        assert store.stat(lease.uri).etag != before


def test_only_folders_of_inferences_that_never_ended_go(store: ObjectStore, root: Path) -> None:
    unfinished = put_plan(store, root, [], days=40)
    folder = Path(unfinished).parent
    put(store, root, str(folder.relative_to(root) / "reports/0-of-1.json"), days=35)
    done = put_plan(store, root, [], days=40, run="b")
    put(store, root, str(Path(done).parent.relative_to(root) / "manifest.json"), days=40)
    going_on = put_plan(store, root, [], days=40, run="c")
    put(store, root, str(Path(going_on).parent.relative_to(root) / "x.tif"), days=20)
    put(store, root, f"outputs/refine_results/x/{'d' * 64}/x.tif", days=40)  # another tool's
    put(store, root, "outputs/mine/plan-1.json", days=40)  # a person's
    put(store, root, "outputs/classify_pixels/x/current.json", days=40)
    found = collect(store).kinds[1]
    assert (found.deleted, found.young) == (2, 2)
    assert not folder.exists() or not there(root, str(folder.relative_to(root)))
    assert len(there(root, "outputs")) == 7


def test_half_uploads_go(store: ObjectStore, root: Path) -> None:
    half = put(store, root, f"shards/.{KEYS[0]}.1-2-3.part", days=40)
    fresh = put(store, root, f"shards/.{KEYS[0]}.1-2-4.part", days=0)
    assert [upload.uri for upload in store.half_uploads(f"{root}/shards/")] == 2 * [
        f"{root}/shards/{KEYS[0]}"
    ]
    found = collect(store).kinds[2]
    assert (found.deleted, found.deleted_bytes, found.young) == (1, 4, 1)
    assert not Path(half).exists()
    assert Path(fresh).exists()


def test_a_run_that_starts_while_garbage_is_looked_for_keeps_its_shards(
    store: ObjectStore, root: Path
) -> None:
    put(store, root, f"shards/{KEYS[0]}", days=40)
    plan = put_plan(store, root, [KEYS[0]], days=40)
    held: list[HeldLease] = []
    found = collect(store, marked=lambda: held.append(HeldLease(store, leases.Lease(plan_uri=plan))))
    assert (found.kinds[0].deleted, found.kinds[0].needed) == (0, 1)
    assert there(root, "shards") == [KEYS[0]]
    assert there(root, "outputs") == ["plan-1.json"]


def test_a_run_waits_while_a_turn_lasts_that_may_not_have_read_its_lease(
    store: ObjectStore, root: Path
) -> None:
    plan = put_plan(store, root, [KEYS[0]], days=40)
    turns = Turns(store)
    turns.begin()
    began = threading.Event()

    def run() -> None:
        with leased(store, plan):
            began.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert not began.wait(0.2)
        turns.begin()  # which reads its lease
        assert began.wait(5)
    finally:
        turns.end()
        thread.join()


def test_a_dead_collector_holds_nobody_up_for_ever(
    store: ObjectStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = Turns(store)
    turns.begin()
    assert not turns.over
    with pytest.raises(RunError, match="Another collection is under way"):
        Turns(store)
    monkeypatch.setattr(leases, "TURN_WAIT_SECONDS", 0.05)
    wait_for_turn(store)
    time.sleep(0.06)
    other = Turns(store)  # the first one is dead, as far as anybody can tell
    other.begin()
    with pytest.raises(RunError, match="took over"):
        turns.begin()
    other.end()
    assert other.over
    assert there(root, "leases") == ["turn.json"]


def test_what_is_left_when_a_turn_ends_goes_in_the_next(
    store: ObjectStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        put(store, root, f"shards/{number:064x}", days=40)
    calls = 0

    def over(self: Turns) -> bool:  # noqa: ARG001
        nonlocal calls
        calls += 1
        return calls == 2

    monkeypatch.setattr(Turns, "over", property(over))
    monkeypatch.setattr("tasks.infer.collect.BATCH", 2)
    assert collect(store).kinds[0].deleted == 5
    assert calls == 6


def test_nothing_goes_by_a_lease_or_a_plan_that_cannot_be_understood(store: ObjectStore, root: Path) -> None:
    put(store, root, f"shards/{KEYS[0]}", days=40)
    bad = put(store, root, "leases/runs/x.json", days=0, data=b"{")
    with pytest.raises(StoreError, match="is no lease"):
        collect(store)
    store.delete(bad)
    plan = put(store, root, f"outputs/t/x/{'a' * 64}/plan-1.json", days=0, data=b"[]")
    with leased(store, plan), pytest.raises(StoreError, match="is no plan"):
        collect(store)
    with leased(store, str(root / "outputs/gone/plan-1.json")):
        assert "is gone" in collect(store, dry_run=True).remarks[0]
    assert there(root, "shards") == [KEYS[0]]
