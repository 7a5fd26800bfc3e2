"""The doctor on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[3]


def test_doctor_finds_this_environment_whole() -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CHIPLINE_", "MLFLOW_", "PREFECT_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "infra.doctor", "--json"],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    document = json.loads(done.stdout)
    found = {(finding["name"], finding["section"].split(" ")[0]): finding for finding in document["findings"]}
    for name in ("numpy", "torch", "torchvision", "rasterio", "pyogrio", "mlflow", "prefect"):
        assert found[name, "Python"]["state"] == "good"
    assert found["PyTorch", "Packages"]["state"] == "good"
    assert found["rasterio", "GDAL"]["state"] == "good"
    assert ("kernel", "Containment") in found
    assert done.returncode == (1 if document["problems"] else 0)
