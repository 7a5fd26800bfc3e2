"""Parts that die: started again, they finish, with the same pixels and little done twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks.settings import settings
from tests.fault.work import Work, end, functions_of, lives, make_work

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("CHIPLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
    settings.cache_clear()
    yield make_work(tmp_path)
    settings.cache_clear()


def test_the_process_killed_three_times(work: Work) -> None:
    for shards in (3, 9, 13):
        process = work.start()
        work.wait_begun(shards)
        function = list(functions_of(process.pid))
        end(process)
        assert function, "it had started its function"
        psutil.wait_procs(function, timeout=10)
        assert not any(map(lives, function)), "the function dies with its host"
    assert work.start().wait(60) == 0, work.log()
    work.check_finished(interruptions=3)


def test_the_function_killed(work: Work) -> None:
    process = work.start()
    work.wait_begun(6)
    for victim in functions_of(process.pid):
        victim.kill()
    assert process.wait(60) != 0
    assert "killed by SIGKILL" in work.log()
    assert work.start().wait(60) == 0, work.log()
    work.check_finished(interruptions=1)


def test_terminated_politely(work: Work) -> None:
    process = work.start()
    work.wait_begun(6)
    function = list(functions_of(process.pid))
    end(process, signal.SIGTERM)
    psutil.wait_procs(function, timeout=10)
    assert not any(map(lives, function))
    assert work.start().wait(60) == 0, work.log()
    work.check_finished(interruptions=1)


def test_stopped_and_let_go_on(work: Work) -> None:
    process = work.start()
    work.wait_begun(4)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0, work.log()
    work.check_finished(interruptions=0)


def test_two_workers_on_the_same_shards(work: Work) -> None:
    both = [work.start(), work.start()]
    assert [process.wait(90) for process in both] == [0, 0], work.log()
    # Each may compute all; the store keeps one object per shard, and both agree on the output.
    work.check_finished(interruptions=len(both) * 64)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store lies on a file system of a few pages; then it gets room."""
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("CHIPLINE_ROOT", str(root))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
    settings.cache_clear()
    work = make_work(tmp_path)
    # Everything happens within one mount namespace, which is gone with its last process.
    script = f"""
        set -e
        cp -a {root} {tmp_path}/before
        mount -t tmpfs -o size=100k none {root} || exit 77
        cp -a {tmp_path}/before/. {root}/
        if "$@" ; then echo "it had room"; exit 1; fi
        mount -o remount,size=20m {root}
        "$@"
        umount -l {root} 2>/dev/null || true
        mkdir -p {tmp_path}/after && cp -a {root}/. {tmp_path}/after/
    """
    script = script.replace(f"        umount -l {root} 2>/dev/null || true\n", "")
    process = work.start(("unshare", "-rm", "bash", "-c", script, "bash"))
    if process.wait(120) == 77:
        pytest.skip("this machine lets nobody mount a file system of its own")
    assert process.returncode == 0, work.log()
    assert "No space left on device" in work.log()
    root.rename(tmp_path / "hidden")
    (tmp_path / "after").rename(root)
    work.check_finished(interruptions=1)
    settings.cache_clear()
