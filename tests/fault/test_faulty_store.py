"""A store that is slow, errs, breaks off or dies: the part finishes, at once or when it is started again."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tasks.settings import settings
from tests.fault.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.fault.work import Work, make_work
from tests.integration.store.conftest import BUCKET, Server, as_setting, server, wait_for

__all__ = ["server"]  # the fixture
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultyProxy]:
    port = urlsplit(server.endpoint_url).port
    assert port is not None
    with faulty_proxy(port) as running:
        yield running


@pytest.fixture
def work(
    server: Server, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Work]:
    """Imagery, shards and output lie in the store; the tests see it directly, the work through the proxy."""
    root = f"s3://{BUCKET}/{tmp_path.name}"
    monkeypatch.setenv("CHIPLINE_STORES", as_setting(server.admin))
    monkeypatch.setenv("CHIPLINE_ROOT", root)
    monkeypatch.setenv("CHIPLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", json.dumps([f"s3://{BUCKET}/", str(tmp_path)]))
    settings.cache_clear()
    made = make_work(tmp_path, root=root)
    behind = server.admin.model_copy(update={"endpoint_url": f"http://127.0.0.1:{proxy.port}"})
    made.environment["CHIPLINE_STORES"] = as_setting(behind)
    yield made
    settings.cache_clear()


@pytest.mark.parametrize(
    ("fault", "share"), [("slow", 0.2), ("error", 0.15), ("reset", 0.15), ("truncate", 0.15)]
)
def test_a_fault_now_and_then_is_outlived(work: Work, proxy: FaultyProxy, fault: Fault, share: float) -> None:
    proxy.fault, proxy.share = fault, share
    assert work.start().wait(200) == 0, work.log()
    assert proxy.met[fault], "the fault was met"
    work.check_finished(interruptions=0)


def test_a_store_that_only_errs_fails_the_part_and_a_second_start_finishes(
    work: Work, proxy: FaultyProxy
) -> None:
    process = work.start()
    work.wait_begun(4)
    proxy.fault = "error"
    assert process.wait(200) != 0
    assert "Error" in work.log()
    proxy.fault = "none"
    assert work.start().wait(60) == 0, work.log()
    work.check_finished(interruptions=1)


def test_a_server_that_is_killed_and_started_again_is_waited_for(work: Work, server: Server) -> None:
    process = work.start()
    work.wait_begun(4)
    server.process.kill()
    server.process.wait()
    time.sleep(8)
    arguments = [str(item) for item in server.process.args]  # type: ignore[union-attr]
    home = Path(next(item for item in arguments if item.startswith("-dir=")).removeprefix("-dir="))
    with (home / "log-again").open("wb") as log:
        again = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=home)
    try:
        wait_for(server.endpoint_url, again, home / "log-again")
        assert process.wait(200) == 0, work.log()
        work.check_finished(interruptions=0)
    finally:
        again.terminate()
        again.wait(30)
