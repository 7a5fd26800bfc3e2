"""A run that is cancelled as Prefect's UI does it takes its parts with it; more faults in tests/fault."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.local import LocalStack
from tests.fault.whole_stack import cancel, prepared

if TYPE_CHECKING:
    from tests.conftest import Runs


def test_a_cancelled_run_cancels_its_parts_and_shows_nothing(
    stack: LocalStack, runs: Runs, tmp_path: Path
) -> None:
    with prepared(stack, runs, tmp_path) as site:
        work = site.work(seconds=0.5, edge=256, parts=1)
        work.start()
        stored = work.wait_stored(1 / work.shards)
        assert sum(stored.values()) < work.shards
        cancel(work)
        assert [part["state_type"] for part in work.part_runs()] == ["CANCELLED"]
        assert not work.visible()
