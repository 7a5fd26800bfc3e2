"""What importing a flow loads: forms and schedules need no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "mlflow", "geopandas", "rasterio", "numpy", "pandas", "pyogrio", "scipy")


def _modules(*patterns: str) -> list[str]:
    files = sorted(file for pattern in patterns for file in PROJECT.glob(pattern))
    return [
        ".".join(file.relative_to(PROJECT).with_suffix("").parts)
        for file in files
        if file.name != "__init__.py"
    ]


def _loaded_by(modules: list[str]) -> set[str]:
    code = (
        f"import importlib, json, sys\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


@pytest.mark.parametrize(
    "patterns",
    [
        pytest.param(("flows/*.py",), id="flows"),
        pytest.param(("tasks/*/task.py",), id="tasks"),
        pytest.param(("tasks/*/parameters.py",), id="parameters"),
    ],
)
def test_importing_what_prefect_imports_loads_nothing_heavy(patterns: tuple[str, ...]) -> None:
    modules = _modules(*patterns)
    assert modules
    loaded = _loaded_by(modules)
    assert not {name for name in HEAVY if name in loaded}


def test_the_probe_sees_a_heavy_import() -> None:
    assert "numpy" in _loaded_by(["tasks.settings", "numpy"])


def test_parameters_do_not_load_prefect() -> None:
    assert "prefect" not in _loaded_by(_modules("tasks/*/parameters.py"))
