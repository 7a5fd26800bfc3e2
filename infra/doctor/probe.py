"""What one interpreter has: run as a script by it, prints one JSON object per line.

Standard library only: it runs in Pythons that have nothing of ours. Each module is announced before it is
imported, so that one which takes the process down is known by name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from typing import Any


def say(**values: Any) -> None:
    """One line for the doctor, past whatever the modules print."""
    os.write(_OUT, (json.dumps(values) + "\n").encode())


def try_module(name: str) -> None:
    """Imports a module; says its version, or why it cannot be imported."""
    say(module=name, state="trying")
    try:
        if importlib.util.find_spec(name) is None:
            say(module=name, state="missing")
            return
        module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken module may raise anything, and that is the finding
        say(module=name, state="broken", error=f"{type(error).__name__}: {error}"[:500])
        return
    version = getattr(module, "__version__", None)
    say(module=name, state="good", version=str(version or _distribution_version(name)))


def _distribution_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def devices() -> list[str]:
    """GPUs that the imported frameworks see, as ``framework: device``."""
    found: list[str] = []
    torch, tensorflow = sys.modules.get("torch"), sys.modules.get("tensorflow")
    runtime = sys.modules.get("onnxruntime")
    if torch is not None and torch.cuda.is_available():
        found += [f"torch: {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())]
    if tensorflow is not None:
        found += [f"tensorflow: {gpu.name}" for gpu in tensorflow.config.list_physical_devices("GPU")]
    if runtime is not None and "CUDAExecutionProvider" in runtime.get_available_providers():
        found.append("onnxruntime: CUDAExecutionProvider")
    return found


def drivers() -> dict[str, list[str]]:
    """GDAL's drivers by library: ``rasterio`` (raster), ``pyogrio`` (vector)."""
    found: dict[str, list[str]] = {}
    rasterio, pyogrio = sys.modules.get("rasterio"), sys.modules.get("pyogrio")
    if rasterio is not None:
        with rasterio.Env() as environment:
            found["rasterio"] = sorted(environment.drivers())
    if pyogrio is not None:
        found["pyogrio"] = sorted(pyogrio.list_drivers())
    return found


def main(modules: list[str]) -> None:
    """All of it, in lines."""
    say(
        python=platform.python_version(),
        executable=sys.executable,
        prefix=sys.prefix,
        has_pip=importlib.util.find_spec("pip") is not None,
    )
    for name in modules:
        try_module(name)
    for part in (devices, drivers):
        try:
            say(**{part.__name__: part()})
        except Exception as error:  # noqa: BLE001 - foreign libraries again
            say(**{part.__name__: None}, error=f"{type(error).__name__}: {error}"[:500])


if __name__ == "__main__":
    # Frameworks print when they are imported; that goes to stderr.
    _OUT = os.dup(1)
    os.dup2(2, 1)
    main(sys.argv[1:])
    os._exit(0)
