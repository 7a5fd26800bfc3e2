"""A package's own inference function, loaded from the unpacked package."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any


def packaged_function(package: Path, folder: Path) -> Any:
    """The function of ``package``, unpacked into ``folder``, initialised on the CPU."""
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)
    definition = folder / f"{package.stem}.emd"
    path = folder / json.loads(definition.read_text())["InferenceFunction"]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, path.stem)()
    function.initialize(model=str(definition), device=-1)
    arguments = {item["name"]: item.get("value") for item in function.getParameterInfo()}
    function.getConfiguration(**{name: value for name, value in arguments.items() if value is not None})
    return function
