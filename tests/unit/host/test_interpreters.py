"""What is told to install where."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tasks.host import interpreters
from tasks.host.interpreters import (
    FRAMEWORKS,
    framework_of,
    framework_remedy,
    import_remedy,
    install_command,
    interpreter_for,
)
from tasks.package import read_definition
from tasks.settings import settings

OTHER = Path("/opt/other env/bin/python")


def test_frameworks_are_known_in_any_spelling() -> None:
    for given, name in (
        ("pytorch", "PyTorch"),
        ("TENSORFLOW", "TensorFlow"),
        ("arcgis.learn.models._inferencing", "arcgis"),
        ("onnxruntime", "ONNX"),
    ):
        framework = framework_of(given)
        assert framework is not None
        assert framework.name == name
    assert framework_of("Unheard") is None
    assert framework_of(None) is None


def test_command_quotes_the_path_and_does_without_pip() -> None:
    assert install_command(OTHER, ["torch", "torchvision"]) == (
        "'/opt/other env/bin/python' -m pip install torch torchvision"
    )
    assert install_command(OTHER, ["torch"], has_pip=False).startswith("uv pip install --python '/opt")


def test_tensorflow_gets_an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tensorflow,) = (known for known in FRAMEWORKS if known.name == "TensorFlow")
    root = Path(interpreters.__file__).parents[2]
    assert f"make -C {root} tensorflow" in framework_remedy(tensorflow, Path(sys.executable))
    assert framework_remedy(tensorflow, OTHER).endswith("-m pip install tensorflow")
    # Installed without the sources there is no Makefile.
    monkeypatch.setattr(interpreters, "_ROOT", tmp_path)
    remedy = framework_remedy(tensorflow, Path(sys.executable))
    assert "-m venv" in remedy
    assert f"{sys.executable} -m pip" not in remedy


@pytest.mark.parametrize("framework", ["tensorflow", "Keras"])
def test_environment_that_was_built_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, framework: str
) -> None:
    monkeypatch.setattr(interpreters, "_ROOT", tmp_path / "sources")
    monkeypatch.setattr(settings(), "cache", tmp_path / "cache")
    definition = read_definition(f'{{"Framework": "{framework}"}}')
    assert interpreter_for(definition, "0" * 64) == Path(sys.executable)
    for folder in ("cache/interpreters/tensorflow", "sources/.venv-tensorflow"):
        built = tmp_path / folder / "bin" / "python"
        built.parent.mkdir(parents=True)
        built.write_text("#!/bin/sh\n")
        built.chmod(0o755)
        assert interpreter_for(definition, "0" * 64) == built
    monkeypatch.setattr(settings(), "host_interpreters", {framework: Path("/usr/bin/env")})
    assert interpreter_for(definition, "0" * 64) == Path("/usr/bin/env")


@pytest.mark.parametrize(
    ("module", "words"),
    [("cv2", "opencv-python-headless"), ("PIL.Image", "pillow"), ("keras.layers", "tensorflow")],
)
def test_modules_are_installed_under_the_name_that_pip_knows(module: str, words: str) -> None:
    assert words in import_remedy(module, OTHER, has_pip=True)


def test_unknown_module_becomes_no_command() -> None:
    assert "install evil" not in import_remedy("evil", OTHER, has_pip=True)


def test_package_without_a_framework_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings(), "host_interpreters", {"": Path("/x"), "TensorFlow": Path("/y")})
    assert interpreter_for(read_definition("{}"), "0" * 64) == Path(sys.executable)
