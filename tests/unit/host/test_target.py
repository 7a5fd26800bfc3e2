"""The function's file is found however the definition spells it, and never outside the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import PackageError
from tasks.host.target import class_names, default_raster_info, function_path
from tasks.package.definition import ModelDefinition


def _definition(function: str | None = None, **more: object) -> ModelDefinition:
    named = {} if function is None else {"InferenceFunction": function}
    return ModelDefinition.model_validate({"Framework": "PyTorch", **named, **more})


@pytest.mark.parametrize("named", ["Sub/Probe.py", ".\\Sub\\Probe.py", "sub\\PROBE.py", "./Sub//Probe.py"])
def test_path_is_found_as_windows_would_find_it(tmp_path: Path, named: str) -> None:
    (tmp_path / "Sub").mkdir()
    (tmp_path / "Sub" / "Probe.py").touch()
    assert function_path(tmp_path, _definition(named)) == (tmp_path / "Sub" / "Probe.py").resolve()


@pytest.mark.parametrize("named", ["../Probe.py", "Sub/../../Probe.py", "link.py", "Missing.py", "Sub"])
def test_path_outside_the_package_is_refused(tmp_path: Path, named: str) -> None:
    package = tmp_path / "package"
    (package / "Sub").mkdir(parents=True)
    (tmp_path / "Probe.py").touch()
    (package / "link.py").symlink_to(tmp_path / "Probe.py")
    with pytest.raises(PackageError, match="is not in the package"):
        function_path(package, _definition(named))


def test_definition_without_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="names no InferenceFunction"):
        function_path(tmp_path, _definition())


def test_raster_info_and_names_follow_the_definition() -> None:
    definition = _definition(
        ExtractBands=[0, 1, 2, 3],
        ImageWidth=64,
        ImageHeight=32,
        Classes=[{"Value": 3, "Name": "roof", "Color": [1, 2, 3]}],
    )
    info = default_raster_info(definition)
    assert info["bandCount"] == 4
    assert info["extent"] == [0.0, 0.0, 64.0, 32.0]
    assert class_names(definition) == {3: "roof"}
