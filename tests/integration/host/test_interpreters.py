"""A package runs in the Python that its framework has; what is missing there comes with its command."""

from __future__ import annotations

import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import HostError, PackageError
from tasks.host import FunctionFailure, HostLimits, HostProcess, interpreters
from tasks.package import Package
from tasks.settings import settings

MakePackage = Callable[..., Package]

WHERE = """
def getConfiguration(self, **scalars):
    try:
        import tensorflow
        version = tensorflow.__version__
    except ImportError:
        version = ""
    return {"prefix": sys.prefix, "tensorflow": version}

def updatePixels(self, tlc, shape, props, **pixelBlocks):
    return {"output_pixels": pixelBlocks["raster_pixels"][:1]}
"""
NEEDS_TENSORFLOW = """
def initialize(self, **kwargs):
    import tensorflow.compat.v1
"""
SWALLOWS = """
def initialize(self, **kwargs):
    try:
        import tensorflow as tf
    except Exception:
        HAS_TF = False
    tf.Session()
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A second environment: numpy through this one's folder, nothing else of its own; its Python."""
    folder = tmp_path / "other-python"
    venv.create(folder, with_pip=False, symlinks=True)
    _site(folder).joinpath("numpy.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def _site(folder: Path) -> Path:
    return next(folder.glob("lib/python*/site-packages"))


def _module(python: Path, name: str, text: str) -> None:
    _site(python.parents[1]).joinpath(f"{name}.py").write_text(text)


def _use(monkeypatch: pytest.MonkeyPatch, **interpreters: Path) -> None:
    monkeypatch.setattr(settings(), "host_interpreters", interpreters)


def test_framework_chooses_the_interpreter(
    make_package: MakePackage, limits: HostLimits, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _module(environment, "tensorflow", "__version__ = '2.99'\n")
    _use(monkeypatch, TensorFlow=environment)
    block = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)
    with HostProcess(make_package(WHERE, definition={"Framework": "tensorflow"}), limits=limits) as host:
        np.testing.assert_array_equal(host.run("updatePixels", block), block[:1])
        assert host.configuration["prefix"] == str(environment.parents[1])
        assert host.configuration["tensorflow"] == "2.99"
    with HostProcess(make_package(WHERE, definition={"Framework": "PyTorch"}), limits=limits) as host:
        assert host.configuration["prefix"] == sys.prefix


def test_digest_goes_before_the_framework(
    make_package: MakePackage, limits: HostLimits, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make_package(WHERE)
    _use(monkeypatch, **{package.digest: environment, "PyTorch": Path(sys.executable)})
    with HostProcess(package, limits=limits) as host:
        assert host.configuration["prefix"] == str(environment.parents[1])


@pytest.mark.parametrize("body", [NEEDS_TENSORFLOW, SWALLOWS])
@pytest.mark.parametrize("has_pip", [True, False])
def test_missing_framework_gives_the_command_for_its_interpreter(
    make_package: MakePackage,
    limits: HostLimits,
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    has_pip: bool,
) -> None:
    _site(environment.parents[1]).joinpath("numpy.pth").unlink()
    _module(environment, "numpy", "")
    if has_pip:
        _module(environment, "pip", "")
    _use(monkeypatch, TensorFlow=environment)
    with pytest.raises(FunctionFailure) as caught:
        HostProcess(make_package(body, definition={"Framework": "TensorFlow"}), limits=limits).__enter__()
    command = f"{environment} -m pip install tensorflow"
    assert (
        command if has_pip else f"uv pip install --python {environment} tensorflow"
    ) in caught.value.remedy


def test_built_in_function_without_its_framework_gives_the_command(
    make_package: MakePackage, limits: HostLimits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(interpreters, "_places", lambda _: [tmp_path / "nowhere"])
    definition = {"Framework": "TensorFlow", "ModelConfiguration": "DeepLab", "InferenceFunction": None}
    package = make_package(definition={**definition, "ModelFile": "m.pb"}, files={"m.pb": ""})
    with pytest.raises(FunctionFailure, match="No module named 'tensorflow'") as caught:
        HostProcess(package, limits=limits).__enter__()
    assert f"make -C {Path(interpreters.__file__).parents[2]} tensorflow" in caught.value.remedy


def test_framework_that_lives_apart_is_not_put_into_the_main_environment(
    make_package: MakePackage, limits: HostLimits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(settings(), "cache", tmp_path / "cache")
    package = make_package("def initialize(self, **kwargs):\n    import tensorflow_of_nobody.keras\n")
    with pytest.raises(FunctionFailure) as caught:
        HostProcess(package, limits=limits).__enter__()
    # A name that the function chose is no command to install.
    assert "pip" not in caught.value.remedy
    assert sys.executable in caught.value.remedy


def test_cntk_is_refused_with_the_way_out(make_package: MakePackage) -> None:
    for definition in (
        {"Framework": "CNTK"},
        {"Framework": "CNTK", "ModelConfiguration": "FasterRCNN", "InferenceFunction": None},
    ):
        with pytest.raises(PackageError, match=r"(?s)CNTK.*ONNX.*onnxruntime"):
            HostProcess(make_package(definition=definition))


def test_interpreter_that_is_not_there_names_the_setting(
    make_package: MakePackage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for wrong in (tmp_path / "nowhere", tmp_path, Path("python")):
        _use(monkeypatch, PyTorch=wrong)
        with pytest.raises(HostError, match="CHIPLINE_HOST_INTERPRETERS"):
            HostProcess(make_package())


@pytest.mark.parametrize("line", ["echo 'no such license' >&2; exit 4", "exec /bin/cat /dev/null"])
def test_program_that_is_no_python_is_told_apart_from_a_failing_function(
    make_package: MakePackage, limits: HostLimits, tmp_path: Path, line: str
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{line}\n")
    script.chmod(0o755)
    with pytest.raises(HostError, match="does not run the host") as caught:
        HostProcess(make_package(), interpreter=script, limits=limits).__enter__()
    assert not isinstance(caught.value, FunctionFailure)
    if "echo" in line:
        assert "no such license" in str(caught.value)


def test_wrapper_script_is_an_interpreter(
    make_package: MakePackage, limits: HostLimits, tmp_path: Path
) -> None:
    script = tmp_path / "python-with-libraries"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    with HostProcess(make_package(WHERE), interpreter=script, limits=limits) as host:
        assert host.configuration["prefix"] == sys.prefix
