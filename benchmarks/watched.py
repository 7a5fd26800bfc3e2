"""A command in a process of its own, its memory watched from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil


def watched(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command that writes a JSON object as the last line it prints.

    Returns that object, with ``peak_mib``: the highest sum of the process tree's memory, seen every
    0.2 seconds: memory of its own and shared memory (PSS, so that what its processes share counts once), and
    the files that are mapped, programs and libraries, in full for each process: PSS would shrink while any
    other program on the machine maps them, too. Where it names phases (``ended``: when each of them ended, by
    ``time.time()``), ``peaks_mib`` has the highest sum within each.
    """
    with (folder / "printed").open("w+") as printed:
        process = subprocess.Popen(
            command, stdout=printed, env={**os.environ, **(environment or {})}, cwd=Path(__file__).parents[1]
        )
        tree, seen = psutil.Process(process.pid), []
        while process.poll() is None:
            seen.append((time.time(), _memory_mib(tree)))
            time.sleep(0.2)
        printed.seek(0)
        lines = printed.read().strip().splitlines()
    if process.returncode != 0 or not lines:
        raise SystemExit(f"{' '.join(command)} failed with code {process.returncode}")
    answer: dict[str, Any] = json.loads(lines[-1])
    peaks, begun = {}, 0.0
    for phase, ended in answer.get("ended", {}).items():
        peaks[phase] = max((memory for when, memory in seen if begun < when <= ended), default=0.0)
        begun = ended
    return {**answer, "peak_mib": max(memory for _, memory in seen), "peaks_mib": peaks}


def _memory_mib(tree: psutil.Process) -> float:
    total = 0
    try:
        processes = [tree, *tree.children(recursive=True)]
    except psutil.Error:
        return 0.0
    for process in processes:
        try:
            places = Path(f"/proc/{process.pid}")
            rolled, status = (places / "smaps_rollup").read_text(), (places / "status").read_text()
        except OSError:
            continue  # it ended between being listed and being asked
        total += sum(
            map(int, re.findall(r"^(?:Pss_Anon|Pss_Shmem|RssFile):\s+(\d+) kB", rolled + status, re.M))
        )
    return total / 2**10


class Clock:
    """Wall time and processor time (this process and its ended children) since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), self._processor()

    @staticmethod
    def _processor() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    def read(self) -> dict[str, float]:
        """``wall_s`` and ``cpu_s``."""
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": self._processor() - self._cpu}
