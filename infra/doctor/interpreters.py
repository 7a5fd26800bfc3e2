"""Asks interpreters what they have, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PROBE = Path(__file__).with_name("probe.py")
TIMEOUT_S = 180.0


@dataclass
class Module:
    """One module of an interpreter; state is good, missing or broken."""

    name: str
    state: str
    version: str = ""
    error: str = ""


@dataclass
class Interpreter:
    """What an interpreter has.

    Attributes:
        path: as it was named.
        python: its version; empty when it cannot be run.
        has_pip: whether ``-m pip`` works.
        modules: by name, in the order asked.
        devices: GPUs as its frameworks see them.
        drivers: GDAL's drivers by library.
        problem: why it cannot be run, or was cut off.
    """

    path: Path
    python: str = ""
    has_pip: bool = False
    modules: dict[str, Module] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    drivers: dict[str, list[str]] = field(default_factory=dict)
    problem: str = ""


def ask(path: Path, modules: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> Interpreter:
    """What the interpreter at ``path`` has of ``modules``.

    A module that takes the process down is broken, and the modules after it are asked in another process.
    """
    result = Interpreter(path)
    left = list(modules)
    while True:
        lines, problem = _run(path, left, timeout_s)
        crashed = _take(result, lines)
        if not problem:
            return result
        if not crashed:
            result.problem = problem
            return result
        result.modules[crashed] = Module(crashed, "broken", error=problem)
        left = left[left.index(crashed) + 1 :]


def _run(path: Path, modules: Sequence[str], timeout_s: float) -> tuple[list[dict[str, Any]], str]:
    try:
        done = subprocess.run(
            [str(path), "-I", str(_PROBE), *modules],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
    except OSError as error:
        return [], f"cannot be started: {error}"
    except subprocess.TimeoutExpired as error:
        return _lines(error.stdout or b""), f"took longer than {timeout_s:g} s"
    lines = _lines(done.stdout)
    if done.returncode == 0 and lines:
        return lines, ""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return lines, f"ended with code {done.returncode}" + (f": {said[-1][:300]}" if said else "")


def _lines(data: bytes) -> list[dict[str, Any]]:
    found = []
    for line in data.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _take(result: Interpreter, lines: Sequence[dict[str, Any]]) -> str:
    """Puts the lines into ``result``; the module that was being tried when they ended, if any."""
    trying = ""
    for line in lines:
        if "python" in line:
            result.python, result.has_pip = str(line["python"]), bool(line["has_pip"])
        elif line.get("state") == "trying":
            trying = str(line["module"])
        elif "module" in line:
            trying = ""
            name = str(line["module"])
            result.modules[name] = Module(
                name, str(line["state"]), str(line.get("version", "")), str(line.get("error", ""))
            )
        else:
            result.devices = line.get("devices") or result.devices
            result.drivers = line.get("drivers") or result.drivers
    return trying
