"""A worker asks for runs when it can take one, not while it is busy, and at once when a run has ended."""

from __future__ import annotations

from uuid import uuid4

import anyio
import httpx
import pytest
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from infra.local import prefect_worker
from infra.local.prefect_worker import PatientWorker


def test_a_busy_worker_asks_now_and_then_and_at_once_when_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    fails, waiting = False, 1

    async def ask(worker: ProcessWorker) -> list[object]:
        asked.append(worker.limiter.available_tokens > 0)
        if fails:
            raise httpx.ConnectError("away")
        return []

    async def count(_worker: PatientWorker) -> int:
        return waiting

    monkeypatch.setattr(ProcessWorker, "get_and_submit_flow_runs", ask)
    monkeypatch.setattr(PatientWorker, "_waiting", count)

    async def scenario() -> None:
        nonlocal fails, waiting
        worker = PatientWorker(work_pool_name="gpu", limit=1)
        worker._limiter = anyio.CapacityLimiter(1)
        await worker.get_and_submit_flow_runs()
        await worker.get_and_submit_flow_runs()
        assert asked == [True, True]
        waiting = 0
        assert await worker.get_and_submit_flow_runs() == []
        assert asked == [True, True]
        waiting = 1
        run = uuid4()
        worker._limiter.acquire_on_behalf_of_nowait(run)
        before = worker._last_polled_time
        for _ in range(5):
            assert await worker.get_and_submit_flow_runs() == []
        assert asked == [True, True]
        assert worker._last_polled_time > before  # it lives
        monkeypatch.setattr(prefect_worker, "LONGEST_PAUSE_S", 0.0)
        await worker.get_and_submit_flow_runs()
        assert asked == [True, True, False]
        fails = True  # which must not end the worker
        async with anyio.create_task_group() as worker._runs_task_group:
            worker._release_limit_slot(run)
        assert asked == [True, True, False, True]

    anyio.run(scenario)


def test_it_is_what_starts_as_a_process_worker() -> None:
    assert BaseWorker.get_worker_class_from_type("process") is PatientWorker
