"""A command in a process of its own, its memory watched from outside."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil


def watched(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command that writes a JSON object as the last line it prints.

    Returns that object, with ``peak_mib``: the highest sum of the process tree's memory (PSS: shared pages
    count once), seen every 0.2 seconds.
    """
    with (folder / "printed").open("w+") as printed:
        process = subprocess.Popen(
            command, stdout=printed, env={**os.environ, **(environment or {})}, cwd=Path(__file__).parents[1]
        )
        tree, peak = psutil.Process(process.pid), 0.0
        while process.poll() is None:
            peak = max(peak, _memory_mib(tree))
            time.sleep(0.2)
        printed.seek(0)
        lines = printed.read().strip().splitlines()
    if process.returncode != 0 or not lines:
        raise SystemExit(f"{' '.join(command)} failed with code {process.returncode}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return {**answer, "peak_mib": peak}


def _memory_mib(tree: psutil.Process) -> float:
    total = 0
    try:
        processes = [tree, *tree.children(recursive=True)]
    except psutil.Error:
        return 0.0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue  # it ended between being listed and being asked
    return total / 2**20


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
