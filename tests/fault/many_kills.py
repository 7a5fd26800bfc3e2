"""Kill the engine a thousand times, at random moments, and see that each work ends the same.

    python -m tests.fault.many_kills [--kills 1000] [--minutes 60] [--seed 0]

Each round is a work of its own: its worker, its inference function or both are killed with -9 (now and then
the worker is terminated politely) until it has been killed five times or is done; then it is left alone, and
its pixels, its shards and how often they were computed are judged. Prints a line per ten rounds, and the sum.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from tasks.settings import settings
from tests.fault.work import SHARDS_IN_FLIGHT, Work, end, functions_of, make_work

KILLS_PER_WORK = 5


def main() -> None:
    """Run until so many kills have been made, or the time is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    give_up = time.monotonic() + 60 * chosen.minutes
    kills: Counter[str] = Counter()
    works = twice = 0
    while kills.total() < chosen.kills and time.monotonic() < give_up:
        with tempfile.TemporaryDirectory(prefix="many-kills-") as folder:
            work = _work(Path(folder))
            killed = _worked(work, chance, kills)
            work.check_finished(interruptions=killed)
            twice += work.begun().total() - len(work.begun())
        works += 1
        if works % 10 == 0:
            _say(works, kills, twice)
    _say(works, kills, twice)


def _say(works: int, kills: Counter[str], twice: int) -> None:
    listed = ", ".join(f"{count} {what}" for what, count in sorted(kills.items()))
    sys.stdout.write(
        f"{works} works, {kills.total()} kills ({listed}): every result complete and equal; "
        f"{twice / max(1, kills.total()):.2f} shards computed again per kill (at most {SHARDS_IN_FLIGHT})\n"
    )
    sys.stdout.flush()


def _work(folder: Path) -> Work:
    os.environ["CHIPLINE_ROOT"] = str(folder / "root")
    os.environ["CHIPLINE_CACHE"] = str(folder / "cache")
    os.environ["CHIPLINE_ALLOWED_ROOTS"] = f'["{folder}"]'
    settings.cache_clear()
    return make_work(folder, seconds=0.02)


def _worked(work: Work, chance: random.Random, kills: Counter[str]) -> int:
    killed = 0
    while True:
        process = work.start()
        if killed == KILLS_PER_WORK:
            code = process.wait(120)
            if code != 0:
                raise SystemExit(f"a work that was left alone failed:\n{work.log()}")
            return killed
        # Starting takes a second or more, and so does the work; a kill while starting counts, too.
        try:
            code = process.wait(chance.uniform(0.2, 4.0))
        except subprocess.TimeoutExpired:
            kills[_kill(process, chance)] += 1
            killed += 1
            continue
        if code == 0:
            return killed


def _kill(process: subprocess.Popen[bytes], chance: random.Random) -> str:
    victim = chance.choice(("worker", "worker", "function", "both", "terminated worker"))
    functions = list(functions_of(process))
    if victim in ("function", "both"):
        for member in functions:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue  # it ended by itself
    if victim == "function":
        process.wait(60)
    else:
        end(process, signal.SIGTERM if victim == "terminated worker" else signal.SIGKILL)
    _, alive = psutil.wait_procs(functions, timeout=20)
    if alive:
        raise SystemExit(f"{len(alive)} processes of a function outlived their host")
    return victim


if __name__ == "__main__":
    main()
