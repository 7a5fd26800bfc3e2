"""A function that fails is told with its own words, and never takes the host with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from tasks.errors import BadInputError, DeviceError, HostError, PackageError
from tasks.host import FunctionFailure, HostLimits, HostProcess
from tasks.package import Package

MakePackage = Callable[..., Package]

BLOCK = np.ones((3, 8, 8), np.uint8)


def _update(*lines: str) -> str:
    return "def updatePixels(self, tlc, shape, props, **pixelBlocks):\n" + textwrap.indent(
        "\n".join(lines), "    "
    )


def _failure(package: Package, limits: HostLimits, operation: str = "updatePixels") -> FunctionFailure:
    before = _children()
    with HostProcess(package, limits=limits) as host:
        pid = [process for process in _children() if process not in before]
        with pytest.raises(FunctionFailure) as caught:
            host.run(operation, BLOCK, tlc=(512, 1024))  # type: ignore[arg-type]
    assert pid
    assert not [process for process in pid if _lives(process)], "the child is left behind"
    return caught.value


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _children() -> list[psutil.Process]:
    """The processes of hosts; the stack that other tests share is this process's child, too."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(part.endswith("tasks/host/child.py") for part in process.cmdline()):
                found.append(process)
    return found


def test_exception_carries_traceback_block_and_output(make_package: MakePackage, limits: HostLimits) -> None:
    body = _update("print('before it broke')", "return self.helper(pixelBlocks)") + textwrap.dedent("""

    def helper(self, blocks):
        raise ValueError("no such thing")
    """)
    with HostProcess(make_package(body), limits=limits) as host:
        with pytest.raises(FunctionFailure) as caught:
            host.run("updatePixels", BLOCK, tlc=(512, 1024))
        message = str(caught.value)
        for part in ("ValueError: no such thing", "in helper", "(512, 1024)", "(8, 8)", "before it broke"):
            assert part in message
        assert "child.py" not in message
        assert caught.value.cause == "exception"
        assert str(caught.value).endswith(caught.value.remedy)
        # It was an exception, not the end: the next block is served.
        with pytest.raises(FunctionFailure):
            host.run("updatePixels", BLOCK)


@pytest.mark.parametrize("stage", ["initialize", "getParameterInfo", "getConfiguration"])
def test_exception_while_starting_names_the_stage(
    make_package: MakePackage, limits: HostLimits, stage: str
) -> None:
    arguments = {"getParameterInfo": ""}.get(stage, ", **kwargs")
    body = f"def {stage}(self{arguments}):\n    raise KeyError('weights')"
    with pytest.raises(FunctionFailure, match=rf"(?s)KeyError: 'weights'.*in {stage}"):
        HostProcess(make_package(body), limits=limits).__enter__()
    assert not _children()


def test_missing_module_names_the_interpreter(make_package: MakePackage, limits: HostLimits) -> None:
    with pytest.raises(FunctionFailure, match="No module named 'arcgis'") as caught:
        HostProcess(make_package(source="import arcgis\nclass Probe: pass\n"), limits=limits).__enter__()
    assert sys.executable in caught.value.remedy


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["os._exit(3)"], "exit code 3"),
        (["import ctypes", "ctypes.string_at(0)"], "SIGSEGV"),
        (["os.kill(os.getpid(), 9)"], "SIGKILL"),
        (["os.abort()"], "SIGABRT"),
    ],
)
def test_crash_is_named(make_package: MakePackage, limits: HostLimits, lines: list[str], words: str) -> None:
    failure = _failure(make_package(_update("print('so far')", *lines)), limits)
    assert failure.cause == "crash"
    for part in (words, "so far", "(512, 1024)"):
        assert part in str(failure)


def test_sys_exit_is_an_exception_of_the_function(make_package: MakePackage, limits: HostLimits) -> None:
    assert _failure(make_package(_update("sys.exit('bye')")), limits).cause == "exception"


def test_all_blocks_in_flight_fail_when_the_child_dies(make_package: MakePackage, limits: HostLimits) -> None:
    with HostProcess(
        make_package(_update("import time", "time.sleep(0.3)", "os._exit(1)")), limits=limits
    ) as host:
        tickets = [host.submit("updatePixels", BLOCK) for _ in range(3)]
        for ticket in tickets:
            with pytest.raises(FunctionFailure, match="exit code 1"):
                host.result(ticket)
        with pytest.raises(FunctionFailure, match="exit code 1"):
            host.submit("updatePixels", BLOCK)


def test_hang_is_stopped_in_time(make_package: MakePackage) -> None:
    limits = HostLimits(start_timeout_s=20, block_timeout_s=0.6, memory_mb=2000)
    body = _update("if tlc[0]:", "    while True: pass", "return {'output_pixels': np.zeros((1,) + shape)}")
    started = time.monotonic()
    with HostProcess(make_package(body), limits=limits) as host:
        for _ in range(4):  # each in time, all together longer than one may take
            time.sleep(0.2)
            host.run("updatePixels", BLOCK, tlc=(0, 0))
    failure = _failure(make_package(body), limits)
    assert failure.cause == "hang"
    assert "(512, 1024)" in str(failure)
    assert "CHIPLINE_HOST_BLOCK_TIMEOUT_S" in failure.remedy
    assert time.monotonic() - started < 10


def test_slow_start_is_stopped_in_time(make_package: MakePackage) -> None:
    limits = HostLimits(start_timeout_s=1.5, block_timeout_s=20, memory_mb=2000)
    package = make_package("def initialize(self, **kwargs):\n    import time; time.sleep(60)")
    with pytest.raises(FunctionFailure, match="to start") as caught:
        HostProcess(package, limits=limits).__enter__()
    assert caught.value.cause == "hang"


def test_memory_is_watched_with_everything_the_function_starts(make_package: MakePackage) -> None:
    limits = HostLimits(start_timeout_s=20, block_timeout_s=20, memory_mb=300)
    body = _update(
        "if os.fork() == 0:",
        "    hoard = np.ones(60_000_000)",
        "    import time; time.sleep(30)",
        "os.wait()",
    )
    failure = _failure(make_package(body), limits)
    assert failure.cause == "memory"
    assert "CHIPLINE_HOST_MEMORY_MB" in failure.remedy


def test_memory_error_asks_for_a_smaller_batch(make_package: MakePackage, limits: HostLimits) -> None:
    failure = _failure(make_package(_update("raise RuntimeError('CUDA out of memory. Tried …')")), limits)
    assert failure.cause == "out_of_memory"
    assert "batch_size" in failure.remedy


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("None", "no dict with output_pixels"),
        ("{}", "no dict with output_pixels"),
        ("{'output_pixels': np.zeros((1, 12, 12))}", "(bands, 8, 8)"),
        ("{'output_pixels': np.zeros((0, 8, 8))}", "(bands, 8, 8)"),
        ("{'output_pixels': np.zeros((1, 8, 8), complex)}", "complex"),
        ("{'output_pixels': np.array([['a'] * 8] * 8)}", "dtype"),
    ],
)
def test_answer_of_the_wrong_shape_or_kind_is_refused(
    make_package: MakePackage, limits: HostLimits, answer: str, words: str
) -> None:
    failure = _failure(make_package(_update(f"return {answer}")), limits)
    assert failure.cause == "contract"
    assert words in str(failure)


@pytest.mark.parametrize(
    "answer",
    [
        "None",
        "{'output_vectors': 'not json'}",
        "{'output_vectors': '[]'}",
        "{'output_vectors': '[' * 100000}",
        '{\'output_vectors\': \'{"features": [{"attributes": {"Class": "a", "Confidence": NaN}}]}\'}',
    ],
)
def test_vectors_that_are_none_are_refused(
    make_package: MakePackage, limits: HostLimits, answer: str
) -> None:
    body = f"def vectorize(self, **pixelBlocks):\n    return {answer}"
    assert _failure(make_package(body), limits, "vectorize").cause == "contract"


def test_function_that_speaks_on_the_line_itself_is_ended(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = _update(
        "import socket",
        "for number in range(3, 4096):",
        "    try: socket.socket(fileno=os.dup(number)).sendall(b'\\xff' * 64)",
        "    except OSError: pass",
        "return {'output_pixels': np.zeros((1,) + shape)}",
    )
    assert _failure(make_package(body), limits).cause == "protocol"


def test_forged_answer_cannot_make_the_host_read_beyond_the_result(
    make_package: MakePackage, limits: HostLimits
) -> None:
    # The function shrinks every memory file it finds, after the runner has written its result.
    body = _update(
        "import threading, time",
        "def shrink():",
        "    for _ in range(2000):",
        "        for number in range(3, 32):",
        "            try: os.ftruncate(number, 0)",
        "            except OSError: pass",
        "threading.Thread(target=shrink, daemon=True).start()",
        "return {'output_pixels': np.zeros((1,) + shape)}",
    )
    with HostProcess(make_package(body), limits=limits) as host:
        for _ in range(20):
            try:
                host.run("updatePixels", BLOCK)
            except FunctionFailure as error:
                assert error.cause in ("contract", "crash")  # noqa: PT017 - it may also go well
                break


def test_everything_the_function_started_ends_with_the_host(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = _update(
        "if os.fork() == 0:",
        "    os.setsid()",
        "    if os.fork() == 0:",
        "        import time; time.sleep(300)",
        "    os._exit(0)",
        "return {'output_pixels': np.zeros((1,) + shape)}",
    )
    before = set(psutil.pids())
    with HostProcess(make_package(body), limits=limits) as host:
        host.run("updatePixels", BLOCK)
        assert len(set(psutil.pids()) - before) >= 2
    time.sleep(0.2)
    left = [pid for pid in set(psutil.pids()) - before if _is_host_child(pid)]
    assert not left


def _is_host_child(pid: int) -> bool:
    try:
        return any("child.py" in part for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def test_child_dies_with_a_killed_host(make_package: MakePackage, tmp_path: Path) -> None:
    body = _update("print('busy', flush=True)", "while True: pass")
    package = make_package(body)
    script = f"""
import sys, numpy as np
from pathlib import Path
from tasks.host import HostProcess, HostLimits
from tasks.package import Package, read_definition
folder = Path({str(package.folder)!r})
definition = read_definition((folder / "probe.emd").read_text())
limits = HostLimits(start_timeout_s=60, block_timeout_s=60, memory_mb=2000)
with HostProcess(Package(folder, definition, "0", "p"), limits=limits) as host:
    ticket = host.submit("updatePixels", np.ones((3, 8, 8), np.uint8))
    print("started", flush=True)
    host.result(ticket)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"started\n"
        children = psutil.Process(host.pid).children(recursive=True)
        assert children
        host.send_signal(signal.SIGKILL)
        host.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def test_leaving_the_with_statement_cleans_up(make_package: MakePackage, limits: HostLimits) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        with HostProcess(make_package(_update("while True: pass")), limits=limits) as host:
            host.submit("updatePixels", BLOCK)
            folder = host.folder
            assert folder is not None
            assert folder.exists()
        assert not folder.exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with pytest.raises(HostError, match="closed"):
        host.submit("updatePixels", BLOCK)


def test_gpu_that_is_not_there_is_an_error_not_a_cpu_run(
    make_package: MakePackage, limits: HostLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match="GPU"):
        HostProcess(make_package(_update("return {}")), "GPU", limits=limits).__enter__()


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ({"InferenceFunction": "[Functions]System\\DeepLearning\\Segment.py"}, "built into ArcGIS"),
        ({"InferenceFunction": "..\\outside.py"}, "is not in the package"),
        ({"InferenceFunction": "Missing.py"}, "is not in the package"),
    ],
)
def test_function_that_is_not_there_is_refused_before_a_process_starts(
    make_package: MakePackage, definition: dict[str, str], words: str
) -> None:
    with pytest.raises(PackageError, match=words):
        HostProcess(make_package(definition=definition))


def test_props_that_cannot_travel_take_no_place_in_the_ring(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = _update("return {'output_pixels': np.full((1,) + shape, props['noData'] + props['cellSize'][1])}")
    with HostProcess(make_package(body), limits=limits) as host:
        for _ in range(limits.slots + 1):
            with pytest.raises(BadInputError, match="props"):
                host.submit("updatePixels", BLOCK, props={"extent": object()})
        props = {"noData": np.int16(5), "cellSize": np.array([1.0, 2.0])}
        assert (host.run("updatePixels", BLOCK, props=props) == 7).all()


def test_fault_of_our_own_line_is_told_to_whoever_waits(
    make_package: MakePackage, limits: HostLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HostProcess(make_package(_update("return {}")), limits=limits) as host:

        def broken(*_: object) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr("tasks.host.process.read_answer", broken)
        monkeypatch.setattr(host, "_exception", broken)
        monkeypatch.setattr("threading.excepthook", lambda _: None)
        with pytest.raises(FunctionFailure, match="a fault of ours"):
            host.run("updatePixels", BLOCK)


def test_pixels_of_the_wrong_shape_are_the_callers_error(
    make_package: MakePackage, limits: HostLimits
) -> None:
    with HostProcess(make_package(_update("return {}")), limits=limits) as host:
        with pytest.raises(BadInputError):
            host.submit("updatePixels", BLOCK[0])
        with pytest.raises(BadInputError, match="mask"):
            host.submit("updatePixels", BLOCK, np.ones((4, 4), np.uint8))
        with pytest.raises(BadInputError, match="does not offer vectorize"):
            host.submit("vectorize", BLOCK)


# -- where it was ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("import ctypes; ctypes.string_at(0)", "crash"),
        ("os.abort()", "crash"),
        ("while True: pass", "hang"),
        ("import time; time.sleep(60)", "hang"),
        ("hoard = np.ones(60_000_000); import time; time.sleep(60)", "memory"),
    ],
)
def test_stopped_function_is_told_where_it_was(make_package: MakePackage, line: str, cause: str) -> None:
    limits = HostLimits(start_timeout_s=20, block_timeout_s=1.5 if cause == "hang" else 20, memory_mb=300)
    body = _update("self.deep_inside()") + f"\n\ndef deep_inside(self):\n    {line}\n"
    failure = _failure(make_package(body), limits)
    assert failure.cause == cause
    assert "in deep_inside" in failure.function_traceback
    assert "in updatePixels" in failure.function_traceback
    assert "child.py" not in str(failure)
    for part in (failure.function_traceback, "(512, 1024)"):
        assert part in str(failure)


def test_hang_while_starting_is_told_where_it_was(make_package: MakePackage) -> None:
    limits = HostLimits(start_timeout_s=1.5, block_timeout_s=20, memory_mb=2000)
    package = make_package("def getConfiguration(self, **scalars):\n    while True: pass")
    with pytest.raises(FunctionFailure, match="in getConfiguration") as caught:
        HostProcess(package, limits=limits).__enter__()
    assert caught.value.cause == "hang"
    assert not _children()


def test_function_that_floods_the_log_is_stopped_and_its_last_words_kept(make_package: MakePackage) -> None:
    limits = HostLimits(start_timeout_s=20, block_timeout_s=1.5, memory_mb=2000)
    before = psutil.Process().memory_info().rss
    failure = _failure(make_package(_update("while True: print('flood ' * 1000)")), limits)
    assert failure.cause == "hang"
    assert "in updatePixels" in failure.function_traceback
    assert "flood flood" in str(failure)
    assert len(str(failure)) < 40_000
    assert psutil.Process().memory_info().rss - before < 200 * 1024 * 1024


def test_memory_in_files_that_nobody_maps_is_counted(make_package: MakePackage) -> None:
    limits = HostLimits(start_timeout_s=20, block_timeout_s=20, memory_mb=300)
    body = _update(
        "hidden = os.memfd_create('x')",
        "for _ in range(500): os.write(hidden, bytes(1_000_000))",
        "import time; time.sleep(30)",
    )
    assert _failure(make_package(body), limits).cause == "memory"


# -- ways to end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "cause", "words"),
    [
        ("import os\nos._exit(7)\n", "crash", "exit code 7"),
        ("import sys\nsys.exit('not today')\n", "exception", "SystemExit: not today"),
        ("class Probe:\n    def broken(:\n", "exception", 'Probe.py", line 2'),
        ("raise KeyboardInterrupt\n", "exception", "KeyboardInterrupt"),
        ("import ctypes\nctypes.string_at(0)\n", "crash", "SIGSEGV"),
        ("import os\nos.closerange(3, 256)\n", "crash", ""),
        ("", "contract", "defines no class Probe"),
    ],
)
def test_function_that_fails_while_it_is_read(
    make_package: MakePackage, limits: HostLimits, source: str, cause: str, words: str
) -> None:
    with pytest.raises(FunctionFailure) as caught:
        HostProcess(make_package(source=source, name="Probe"), limits=limits).__enter__()
    assert caught.value.cause == cause
    assert words in str(caught.value)
    assert not _children()


def test_cause_of_an_exception_is_shown_with_it(make_package: MakePackage, limits: HostLimits) -> None:
    body = _update(
        "try:",
        "    self.read_weights()",
        "except OSError as error:",
        "    raise RuntimeError('could not start') from error",
    )
    body += "\n\ndef read_weights(self):\n    open('weights.pth')\n"
    failure = _failure(make_package(body), limits)
    for part in ("in read_weights", "FileNotFoundError", "which led to", "RuntimeError: could not start"):
        assert part in str(failure)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["class Odd(Exception):", "    def __str__(self): raise ValueError", "raise Odd()"], "Odd"),
        (["def again(): again()", "again()"], "RecursionError"),
        (["raise BaseException('x' * 100_000)"], "BaseException: xxx"),
        (["return {'output_pixels': np.zeros((1, 8, 8)), 'output_mask': np.ones((3, 3))}"], "output_mask"),
    ],
)
def test_odd_exceptions_are_told_and_the_next_block_is_served(
    make_package: MakePackage, limits: HostLimits, lines: list[str], words: str
) -> None:
    body = _update(
        "if tlc[0]:", *(f"    {line}" for line in lines), "return {'output_pixels': np.ones((1,) + shape)}"
    )
    with HostProcess(make_package(body), limits=limits) as host:
        with pytest.raises(FunctionFailure) as caught:
            host.run("updatePixels", BLOCK, tlc=(512, 1024))
        assert words in str(caught.value)
        assert len(str(caught.value)) < 40_000
        assert host.run("updatePixels", BLOCK, tlc=(0, 0)).all()


def test_configuration_that_is_too_large_to_travel(make_package: MakePackage, limits: HostLimits) -> None:
    body = "def getConfiguration(self, **scalars):\n    return {'all': 'x' * 40_000_000}"
    with pytest.raises(FunctionFailure, match="cannot travel") as caught:
        HostProcess(make_package(body), limits=limits).__enter__()
    assert caught.value.cause == "contract"


@pytest.mark.parametrize(
    "line", ["os._exit(3)", "os.kill(0, 9)", "os.closerange(0, 256)", "os.kill(os.getppid(), 9)"]
)
def test_one_child_ends_and_the_other_works_on(
    make_package: MakePackage, limits: HostLimits, line: str
) -> None:
    good = make_package(_update("return {'output_pixels': np.ones((1,) + shape)}"))
    with HostProcess(good, limits=limits) as other:
        assert _failure(make_package(_update(line, "raise ValueError('still here')")), limits).cause in (
            "crash",
            "exception",
        )
        assert other.run("updatePixels", BLOCK).all()
    with HostProcess(good, limits=limits) as fresh:
        assert fresh.run("updatePixels", BLOCK).all()
