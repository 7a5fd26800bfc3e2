"""Kill the engine a thousand times, at random moments, and see that each work ends the same.

    python -m tests.fault.many_kills [--kills 1000] [--minutes 60] [--seed 0] [--side-by-side 3]

A small Classify Pixels is done again and again, each time from nothing, three of them side by side. Its
worker, its function, one process of the function or both are killed with -9 (now and then the worker
is terminated politely), at a moment drawn from the time that it takes undisturbed, until it has been killed
five times or is done; then it is left alone, and its pixels, its shards and how often they were computed are
judged. Workers are forked from a process that has all modules loaded, so that they work when they are killed;
one of thirty is an interpreter of its own. Prints the fault log as Markdown. Nothing stops it: what hangs is
asked where it is (the stacks of all threads and of the function are kept in a folder), killed, and counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

import psutil

from tasks.host.namespaces import die_with_parent
from tasks.settings import settings
from tests.fault.work import Work, functions_of, lives, make_work, run_part

KILLS_PER_WORK = 5
WORKS_PER_MEASURE = 20
SHARE_OF_INTERPRETERS = 1 / 30
# What is waited for may take so many times what it takes undisturbed, and never less than that.
PATIENCE, LEAST_PATIENCE_S = 20, 90.0
VICTIMS = {
    "worker": ("kill -9 of the worker", 3),
    "function": ("kill -9 of all processes of the function", 3),
    "process": ("kill -9 of one process of the function", 2),
    "both": ("kill -9 of function and worker", 2),
    "terminated": ("SIGTERM to the worker", 1),
}
_PRELOADED = [
    "tests.fault.work",
    "concurrent.futures.process",
    "multiprocessing.context",
    "tasks.infer.part",
    "tasks.infer.finish",
    "rasterio",
]


class Worker(Protocol):
    """A process that computes what is missing and puts the output together."""

    @property
    def pid(self) -> int | None:
        """Its number."""

    def ends_within(self, seconds: float) -> int | None:
        """Its exit status; None where it still runs."""


class Forked(ForkServerProcess):
    """A worker that has its modules loaded."""

    def ends_within(self, seconds: float) -> int | None:
        """Its exit status; None where it still runs."""
        self.join(seconds)
        return self.exitcode


@dataclass
class Started:
    """A worker with an interpreter of its own."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def ends_within(self, seconds: float) -> int | None:
        """Its exit status; None where it still runs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


@dataclass
class Kill:
    """One kill.

    Attributes:
        end: what became of the worker.
        lost: shards that had been begun and are not in the store: they will be computed again.
    """

    victim: str
    end: str
    lost: int


@dataclass
class Log:
    """What happened.

    Attributes:
        problems: what must not happen, in words.
    """

    kept: Path
    kills: list[Kill] = field(default_factory=list)
    starts: int = 0
    works: int = 0
    identical: int = 0
    twice: int = 0
    problems: list[str] = field(default_factory=list)

    def problem(self, what: str, evidence: str) -> None:
        """Note what must not happen, and keep what was seen."""
        self.kept.mkdir(exist_ok=True)
        path = self.kept / f"problem-{len(self.problems)}.txt"
        path.write_text(f"{what}\n\n{evidence}\n")
        self.problems.append(what)
        sys.stderr.write(f"{what}: see {path}\n")

    def __add__(self, other: Log) -> Log:
        return Log(
            self.kept,
            self.kills + other.kills,
            self.starts + other.starts,
            self.works + other.works,
            self.identical + other.identical,
            self.twice + other.twice,
            self.problems + other.problems,
        )

    def markdown(self) -> str:
        """The fault log."""
        lines = [
            "| fault | kills | the worker then | shards computed again per kill: mean, most |",
            "|---|---|---|---|",
        ]
        for victim, (words, _) in VICTIMS.items():
            ours = [kill for kill in self.kills if kill.victim == victim]
            if ours:
                ends = Counter(kill.end for kill in ours)
                listed = ", ".join(f"{end} {count}" for end, count in ends.most_common())
                lost = [kill.lost for kill in ours]
                mean = sum(lost) / len(lost)
                lines.append(f"| {words} | {len(ours)} | {listed} | {mean:.2f}, {max(lost)} |")
        lost = [kill.lost for kill in self.kills]
        lines += [
            "",
            f"{self.works} works, {len(self.kills)} kills, {self.starts} starts of a worker; "
            f"{self.twice} shards computed again ({sum(lost) / max(1, len(lost)):.2f} per kill, at most "
            f"{max(lost, default=0)} after one); content identical in {self.identical} of {self.works}; "
            f"{len(self.problems)} hung, failed without its reason, or left a process behind.",
        ]
        return "\n".join(lines) + "\n"


@dataclass
class Ground:
    """A work that can be begun from nothing again and again.

    Attributes:
        undisturbed_s: what the whole work takes an undisturbed worker, by whether it was forked.
    """

    folder: Path
    work: Work
    log: Log
    undisturbed_s: dict[bool, float] = field(default_factory=dict)

    def reset(self) -> None:
        """Nothing but the plan."""
        for name in ("root", "tmp"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(self.folder / "planned", self.folder / "root")
        (self.folder / "tmp").mkdir()
        (self.folder / "begun").unlink(missing_ok=True)

    def start(self, *, forked: bool) -> Worker:
        """A worker, with a log of its own."""
        self.log.starts += 1
        if not forked:
            return Started(self.work.start())
        worker = Forked(target=run_part, args=(self.work.plan_uri, str(self.work.next_log())))
        worker.start()
        return worker

    @property
    def patience_s(self) -> float:
        """How long anything may take."""
        return max(LEAST_PATIENCE_S, PATIENCE * max(self.undisturbed_s.values(), default=0))

    def measure(self, *kinds: bool) -> None:
        """The whole work, undisturbed, by forked workers or others: the measure of all other times."""
        for forked in kinds:
            self.reset()
            begun = time.monotonic()
            if self.undisturbed(forked=forked):
                self.undisturbed_s[forked] = time.monotonic() - begun
                self.work.check_finished(interruptions=0)

    def undisturbed(self, *, forked: bool = True) -> bool:
        """A worker that is left alone; whether it ended well."""
        worker = self.start(forked=forked)
        code = worker.ends_within(self.patience_s)
        if code is None:
            self.hangs(worker, "a worker that was left alone")
        elif code != 0:
            self.log.problem("a worker that was left alone failed", self.work.log())
        return code == 0

    def hangs(self, worker: Worker, what: str) -> None:
        """Note where it is, and end it."""
        assert worker.pid is not None
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGUSR1)
        worker.ends_within(2)
        tree = [f"{process}\n{_stack(process.pid)}" for process in [*functions_of(worker.pid)]]
        seen = "\n".join([self.work.log(), _stack(worker.pid), *tree])
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        worker.ends_within(self.patience_s)
        self.log.problem(f"{what} had not ended after {self.patience_s:.0f} s", seen)

    def killed(self, chance: random.Random) -> bool:
        """Start a worker and kill something; False where it was done before."""
        begun = len(self.work.begun_list())
        forked = chance.random() >= SHARE_OF_INTERPRETERS
        worker = self.start(forked=forked)
        code = worker.ends_within(chance.uniform(0, 0.4) * self.undisturbed_s[forked])
        victim = chance.choices(list(VICTIMS), [weight for _, weight in VICTIMS.values()])[0]
        functions: list[psutil.Process] = []
        if code is None and victim not in ("worker", "terminated"):
            functions, code = self._functions(worker, chance)
            if code is None and not functions:
                self.hangs(worker, "a worker that started no function")
                return False
        if code is not None:
            if code != 0:
                self.log.problem("a worker failed before anything was killed", self.work.log())
            return False
        end = self._kill(worker, victim, functions, chance)
        if end is None:
            return False
        stored = {path.name for path in (self.folder / "root" / "shards").glob("*")}
        lost = sum(key not in stored for key in self.work.begun_list()[begun:])
        self.log.kills.append(Kill(victim, end, lost))
        return True

    def _functions(self, worker: Worker, chance: random.Random) -> tuple[list[psutil.Process], int | None]:
        """The processes of the function as soon as there are some, or the worker's exit status."""
        give_up = time.monotonic() + self.patience_s
        waited = False
        while time.monotonic() < give_up:
            assert worker.pid is not None
            found = list(functions_of(worker.pid))
            if found and not waited:
                return found, None
            if found:
                # Its way from the fork to the first block, too.
                time.sleep(chance.uniform(0, 0.3))
                return list(functions_of(worker.pid)) or found, None
            waited = True
            code = worker.ends_within(0.005)
            if code is not None:
                return [], code
        return [], None

    def _kill(
        self, worker: Worker, victim: str, functions: Sequence[psutil.Process], chance: random.Random
    ) -> str | None:
        """Kill; what became of the worker, or None where what was to be killed had just ended by itself."""
        assert worker.pid is not None
        everything = list(functions_of(worker.pid))
        met = victim in ("worker", "both", "terminated")
        for process in [chance.choice(functions)] if victim == "process" else functions:
            with suppress(psutil.NoSuchProcess):
                process.kill()
                met = True
        if victim not in ("function", "process"):
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM if victim == "terminated" else signal.SIGKILL)
        code = worker.ends_within(self.patience_s)
        end = self._end_of(worker, victim, code)
        _, alive = psutil.wait_procs(everything, timeout=20)
        left = [process for process in alive if lives(process)]
        if left:
            self.log.problem(f"{len(left)} processes of a function outlived it", f"{left}")
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        return end if met else None

    def _end_of(self, worker: Worker, victim: str, code: int | None) -> str:
        if code is None:
            self.hangs(worker, f"a worker ({VICTIMS[victim][0]})")
            return "hung"
        if code == 0:
            return "had all it needed"
        if code < 0:
            return "died"
        said = self.work.log()
        if "SIGKILL" in said:
            return "failed and said why"
        self.log.problem(f"a worker failed otherwise ({VICTIMS[victim][0]})", said)
        return "failed otherwise"

    def judge(self, kills: int) -> None:
        """The pixels, the shards, and how often they were computed."""
        begun = self.work.begun_list()
        self.log.twice += len(begun) - len(set(begun))
        try:
            self.work.check_finished(interruptions=kills)
        except AssertionError as error:
            self.log.problem("a result is not that of an undisturbed run", f"{error}\n{self.work.log()}")
            shutil.copytree(self.folder / "root", self.log.kept / f"root-{self.log.works}")
        else:
            self.log.identical += 1


def main() -> None:
    """Run until so many kills have been made, or the time is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side-by-side", type=int, default=3)
    chosen = parser.parse_args()
    count = chosen.side_by_side
    shares = [chosen.kills // count + (number < chosen.kills % count) for number in range(count)]
    # Each has settings, an environment and a process to fork from of its own.
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        seeds = [chosen.seed * count + number for number in range(count)]
        logs = list(pool.map(kill_many, shares, [60 * chosen.minutes] * count, seeds))
    log = sum(logs[1:], logs[0])
    sys.stdout.write(log.markdown())
    if log.problems:
        raise SystemExit(f"{len(log.problems)} problems: see {', '.join(str(one.kept) for one in logs)}")


def kill_many(kills: int, seconds: float, seed: int) -> Log:
    """Make so many kills, or as many as there is time for; in a process that ends with its parent."""
    die_with_parent()
    log = Log(Path(tempfile.gettempdir()) / f"many-kills-problems-{os.getpid()}")
    with tempfile.TemporaryDirectory(prefix="many-kills-", ignore_cleanup_errors=True) as folder:
        _kill_many(_ground(Path(folder), log), kills, seconds, seed)
    return log


def _ground(folder: Path, log: Log) -> Ground:
    os.environ.update(
        CHIPLINE_ROOT=str(folder / "root"),
        CHIPLINE_CACHE=str(folder / "cache"),
        CHIPLINE_ALLOWED_ROOTS=f'["{folder}"]',
        # What a killed host leaves behind goes with the folder.
        TMPDIR=str(folder / "tmp"),
    )
    settings.cache_clear()
    (folder / "tmp").mkdir()
    work = make_work(folder)
    os.environ.update(work.environment)
    shutil.copytree(folder / "root", folder / "planned")
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
    return Ground(folder, work, log)


def _kill_many(ground: Ground, wanted: int, seconds: float, seed: int) -> None:
    chance, log = random.Random(seed), ground.log
    give_up = time.monotonic() + seconds
    ground.measure(True, False)  # the first forked worker waits for the modules
    while len(log.kills) < wanted and time.monotonic() < give_up:
        if log.works % WORKS_PER_MEASURE == 0:
            started = log.starts
            ground.measure(True)  # what else the machine does may change
            log.starts = started
            if len(ground.undisturbed_s) < 2:
                raise SystemExit(f"an undisturbed work fails: see {log.kept}")
        ground.reset()
        before = len(log.kills)
        done = False
        while not done and len(log.kills) < min(before + KILLS_PER_WORK, wanted):
            done = not ground.killed(chance)
        if not done:
            ground.undisturbed()
        ground.judge(len(log.kills) - before)
        log.works += 1
        if log.works % 10 == 0:
            times = ", ".join(f"{seconds:.1f} s" for seconds in ground.undisturbed_s.values())
            said = f"{len(log.kills)} kills, {log.identical} of {log.works} works identical"
            sys.stderr.write(f"{said}; an undisturbed one takes {times}\n")
            sys.stderr.flush()


def _stack(pid: int) -> str:
    """Where the kernel has a process."""
    said = [f"process {pid}"]
    for path in sorted(Path(f"/proc/{pid}/task").glob("*/wchan")):
        with suppress(OSError):
            said.append(f"  {path.parent.name}: {path.read_text()}")
    return "\n".join(said)


if __name__ == "__main__":
    # Under its own name, by which other processes find it.
    from tests.fault import many_kills

    many_kills.main()
