"""Faults on a whole stack: Prefect server, workers, S3 and a run with its parts; what becomes of the run.

    python -m tests.fault.whole_stack [FAULT …]     boots a stack of its own, prints the fault log (Markdown)

Each fault meets a Classify Pixels of its own, when an eighth of its shards is in the store. Then the run is
left to itself until it ends, and is started again. The result must be that of an undisturbed run, pixel for
pixel; what lay in the store when the fault came must not be computed again; nothing may be visible too early.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from infra.local import LocalStack
from infra.local.health import client
from infra.local.processes import find_process, marked, stop
from tasks.store import ObjectStore
from tests.conftest import Runs
from tests.fault.work import FUNCTION, definition_of_slow, expected, rough_image

TOOL = "classify_pixels"
LEAF = "infer_part/infer_part"
EDGE, SHARD, STEP = 512, 64, 32


@dataclass
class Site:
    """A stack with a package and a scene to work on.

    Attributes:
        package, scene: URIs.
        image: the scene's pixels  # (1, rows, cols)
    """

    stack: LocalStack
    runs: Runs
    store: ObjectStore
    folder: Path
    image: NDArray[np.uint8]
    package: str = ""
    scene: str = "s3://chipline/imagery/fault/scene.tif"
    works: int = 0

    def prepare(self) -> None:
        """Put the package and the scene into the store."""
        from tasks.package import write_dlpk
        from tasks.package.publish import publish_package
        from tests.fault.work import write_scene

        path = self.folder / "slow.dlpk"
        write_dlpk(path, definition_of_slow(), {"Slow.py": FUNCTION.encode()})
        self.package = publish_package(self.store, path, made_by="test")
        write_scene(self.folder / "scene.tif", self.image)
        self.store.upload(self.folder / "scene.tif", self.scene)

    def work(self, *, seconds: float = 0.1, edge: int = EDGE, parts: int = 2) -> StackWork:
        """A work that nobody has done: its function's argument is its own."""
        self.works += 1
        own = f"{seconds + random.random() * 1e-3:.9f}"
        shards = (edge // SHARD) ** 2
        name = f"fault-{os.getpid()}-{self.works}"
        return StackWork(self, name, own, edge, shards, parts)


@dataclass
class StackWork:
    """One Classify Pixels, perhaps started several times."""

    site: Site
    name: str
    seconds: str
    edge: int
    shards: int
    parts: int
    started: list[str] = field(default_factory=list)
    _plan: Any = None

    def start(self) -> str:
        """Start it, or start it again; the run's identifier."""
        left, top, cell = 500_000, 4_900_000, 0.5
        parameters = {
            "input_raster": [self.site.scene],
            "model": self.site.package,
            "model_arguments": [{"name": "seconds", "value": self.seconds}],
            "output_classified_raster": self.name,
            "shard_size": SHARD,
            "shards_per_part": -(-self.shards // self.parts),
            "extent": [left, top - cell * self.edge, left + cell * self.edge, top],
        }
        run = self.site.runs.start(f"{TOOL}/{TOOL}", parameters)
        self.started.append(run)
        return run

    def part_runs(self) -> list[dict[str, Any]]:
        """All runs of parts of all starts."""
        return [child for run in self.started for child in self.site.runs.children(run)]

    def plan(self) -> Any:
        """The plan, as far as it is in the store."""
        from tasks.infer.part import load_plan

        if self._plan is None:
            for item in self.site.store.list(f"s3://chipline/outputs/{TOOL}/{self.name}/"):
                if item.uri.endswith(f"/plan-{self.parts}.json"):
                    self._plan = load_plan(self.site.store, item.uri)
        return self._plan

    def stored(self) -> dict[int, int]:
        """Number of shards in the store, by part."""
        plan = self.plan()
        if plan is None:
            return {}
        there = {item.uri.rpartition("/")[2] for item in self.site.store.list("s3://chipline/shards/")}
        return {
            part: sum(shard.key in there for shard in plan.shards[start:stop])
            for part, (start, stop) in enumerate(plan.parts)
        }

    def wait_stored(self, share: float = 1 / 8, *, within_s: float = 240) -> dict[int, int]:
        """Until that share of the shards is in the store."""
        end = time.monotonic() + within_s
        while sum((found := self.stored()).values()) < share * self.shards:
            if time.monotonic() > end:
                raise TimeoutError(self.site.runs.log(self.started[-1]))
            time.sleep(0.1)
        return found

    def found(self) -> dict[int, int]:
        """Number of shards that the last process of each part found in the store, by part."""
        from tasks.infer.part import reports

        made = reports(self.site.store, self.plan())
        return {report.part: int(report.counters["shards_found"]) for report in made}

    def visible(self) -> bool:
        """Whether anything is published."""
        from tasks.store import current, read_manifest

        plan = self.plan()
        pointed = current(self.site.store, f"outputs/{TOOL}", self.name) is not None
        return pointed or (plan is not None and read_manifest(self.site.store, plan.folder) is not None)

    def pixels(self) -> NDArray[np.uint8]:
        """The published raster  # (rows, cols)."""
        import rasterio

        from tasks.store import current, join

        local = self.site.folder / f"{self.name}.tif"
        folder = current(self.site.store, f"outputs/{TOOL}", self.name)
        assert folder is not None
        self.site.store.download(join(folder, f"{self.name}.tif"), local)
        with rasterio.open(local) as dataset:
            pixels: NDArray[np.uint8] = dataset.read(1)
        return pixels

    def check(self, before: Mapping[int, int]) -> int:
        """The result is right; how many shards that were stored then (by part) have been computed again."""
        # Where the extent ends, the function still sees what lies beyond.
        np.testing.assert_array_equal(self.pixels(), expected(self.site.image)[: self.edge, : self.edge])
        names = [child["name"] for child in self.part_runs()]
        found = self.found()
        again = 0
        for part, count in before.items():
            runs = {name for name in names if name.startswith(f"infer_part {part + 1}/{self.parts} ")}
            attempts = sum(name in runs for name in names)
            if attempts > 1 and part in found:
                again += max(0, count - found[part])
        return again


def processes_of_run(stack: LocalStack, run: str) -> list[psutil.Process]:
    """The processes of a flow run, without those of inference functions."""
    found = []
    for process in marked(stack.secrets.stack_id):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("PREFECT__FLOW_RUN_ID") == run:
                found.append(process)
    return found


def running_part(work: StackWork) -> str:
    """The run of a part that is under way."""
    return next(str(run["id"]) for run in work.part_runs() if run["state_type"] == "RUNNING")


def signal_all(processes: list[psutil.Process], number: int) -> None:
    """Send a signal to all that still live."""
    assert processes, "there is something to send it to"
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


# -- the faults; each returns the run whose end is awaited ---------------------------------------------------


def kill_control(work: StackWork) -> str:
    """kill -9 of the process that plans, watches and finishes; its parts go on"""
    run = work.started[-1]
    signal_all(processes_of_run(work.site.stack, run), signal.SIGKILL)
    return run


def terminate_control(work: StackWork) -> str:
    """SIGTERM to the process that plans, watches and finishes"""
    run = work.started[-1]
    signal_all(processes_of_run(work.site.stack, run), signal.SIGTERM)
    return run


def kill_part(work: StackWork) -> str:
    """kill -9 of a part's process"""
    signal_all(processes_of_run(work.site.stack, running_part(work)), signal.SIGKILL)
    return work.started[-1]


def terminate_part(work: StackWork) -> str:
    """SIGTERM to a part's process"""
    signal_all(processes_of_run(work.site.stack, running_part(work)), signal.SIGTERM)
    return work.started[-1]


def kill_function(work: StackWork) -> str:
    """kill -9 of the inference function's process"""
    owners = processes_of_run(work.site.stack, running_part(work))
    ours = {process.pid for process in owners}
    children = {child for owner in owners for child in owner.children(recursive=True)}
    signal_all([child for child in children if child.pid not in ours], signal.SIGKILL)
    return work.started[-1]


def kill_worker(work: StackWork) -> str:
    """kill -9 of the worker and its part; the worker is started again"""
    stack = work.site.stack
    lost = running_part(work)
    signal_all(marked(stack.secrets.stack_id, "gpu-1"), signal.SIGKILL)
    stack.up(register=False)
    ended = work.site.runs.wait(lost, timeout_s=300)
    assert ended["state_type"] == "CRASHED", ended["state"]
    return work.started[-1]


def orphan_part(work: StackWork) -> str:
    """kill -9 of the worker alone; its part is an orphan until it ends, then the worker is started again"""
    stack = work.site.stack
    lost = running_part(work)
    entry = stack._read_state()["gpu-1"]
    worker = find_process(entry["pid"], entry["created"])
    assert worker is not None
    worker.kill()
    try:
        # An orphan may come to its end, or stop where it can no longer write to its worker.
        work.site.runs.wait(lost, timeout_s=300)
    finally:
        stack.up(register=False)
    return work.started[-1]


def kill_store(work: StackWork) -> str:
    """kill -9 of the S3 server; started again after three seconds"""
    stack = work.site.stack
    signal_all(marked(stack.secrets.stack_id, "s3"), signal.SIGKILL)
    time.sleep(3)
    stack.up(register=False)
    return work.started[-1]


def kill_prefect(work: StackWork) -> str:
    """kill -9 of Prefect's server; started again after twenty seconds"""
    stack = work.site.stack
    signal_all(marked(stack.secrets.stack_id, "prefect"), signal.SIGKILL)
    time.sleep(20)
    stack.up(register=False)
    return work.started[-1]


def cancel(work: StackWork) -> str:
    """cancelled, as the button in Prefect's UI does it"""
    run = work.started[-1]
    answer = work.site.runs.http.post(
        f"/flow_runs/{run}/set_state", json={"state": {"type": "CANCELLING", "name": "Cancelling"}}
    )
    answer.raise_for_status()
    ended = work.site.runs.wait(run, timeout_s=60)
    assert ended["state_type"] == "CANCELLED", ended["state"]
    for child in work.part_runs():
        part = work.site.runs.wait(child["id"], timeout_s=60)
        assert part["state_type"] in ("CANCELLED", "COMPLETED"), part["state"]
        # The processes are gone with their runs.
        end = time.monotonic() + 30
        while processes_of_run(work.site.stack, child["id"]):
            assert time.monotonic() < end, "a part goes on after it was cancelled"
            time.sleep(0.2)
    return run


FAULTS: dict[str, Callable[[StackWork], str]] = {
    "kill-control": kill_control,
    "terminate-control": terminate_control,
    "kill-part": kill_part,
    "terminate-part": terminate_part,
    "kill-function": kill_function,
    "kill-worker": kill_worker,
    "orphan-part": orphan_part,
    "kill-store": kill_store,
    "kill-prefect": kill_prefect,
    "cancel": cancel,
}


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        before: shards in the store when the fault came.
        end, end_s: the run's state at last, and how long after the fault.
        restarted: state of the second start.
        again: shards that were stored and have been computed again.
    """

    fault: str
    shards: int
    before: int
    end: str
    end_s: float
    restarted: str
    again: int


def meet(site: Site, name: str) -> Outcome:
    """Let a work meet a fault, and start it again.

    Raises:
        AssertionError: something is not as it must be.
    """
    work = site.work()
    work.start()
    before = work.wait_stored()
    begun = time.monotonic()
    run = FAULTS[name](work)
    ended = site.runs.wait(run, timeout_s=400)
    end_s = time.monotonic() - begun
    if ended["state_type"] != "COMPLETED":
        assert not work.visible(), "something half-written is visible"
    again = site.runs.wait(work.start(), timeout_s=300)
    assert again["state_type"] == "COMPLETED", site.runs.log(work.started[-1])
    return Outcome(
        fault=(FAULTS[name].__doc__ or name).strip(),
        shards=work.shards,
        before=sum(before.values()),
        end=str(ended["state"]["name"]),
        end_s=end_s,
        restarted=str(again["state"]["name"]),
        again=work.check(before),
    )


@contextmanager
def prepared(stack: LocalStack, runs: Runs, folder: Path) -> Iterator[Site]:
    """A site on a running stack; meanwhile this process uses the stack's store."""
    from tasks.settings import settings

    before = dict(os.environ)
    os.environ.update(stack.environment("admin"))
    settings.cache_clear()
    try:
        site = Site(stack, runs, ObjectStore(), folder, rough_image(EDGE))
        site.prepare()
        yield site
    finally:
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


def main() -> None:
    """Boot a stack, meet the faults, print the log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", choices=[*FAULTS, []], default=[], metavar="FAULT")
    chosen = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="chipline-faults-"))
    base = int(os.environ.get("CHIPLINE_PORT_BASE", "21000"))
    failed: list[str] = []
    stack = LocalStack(home / "stack", base, say=partial(print, file=sys.stderr))
    try:
        stack.up()
        url = f"{stack.layout.prefect_url}/api"
        with (
            client(url, stack.secrets.prefect_auth_string, patience_s=90) as http,
            prepared(stack, Runs(http), home) as site,
        ):
            sys.stdout.write(
                "| fault | shards in the store | the run's end | after | started again "
                "| of those shards computed again | content |\n|---|---|---|---|---|---|---|\n"
            )
            for name in chosen.faults or FAULTS:
                try:
                    one = meet(site, name)
                except (AssertionError, TimeoutError) as error:
                    # The others are met all the same.
                    failed.append(name)
                    sys.stderr.write(f"{name}: {error!r}\n")
                    stack.up(register=False)
                    continue
                sys.stdout.write(
                    f"| {one.fault} | {one.before} of {one.shards} | {one.end} | {one.end_s:.0f} s | "
                    f"{one.restarted} | {one.again} | identical |\n"
                )
                sys.stdout.flush()
        if failed:
            raise SystemExit(f"not as it must be: {', '.join(failed)}")
    finally:
        stack.down()
        stop(marked(stack.secrets.stack_id), patience_s=1)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
