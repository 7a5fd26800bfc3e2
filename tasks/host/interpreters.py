"""Which Python runs a package's function, and how a framework that is missing there gets there.

The main environment holds PyTorch. TensorFlow, Keras, or what a single package needs, live in environments of
their own: ``make tensorflow`` builds one that is found by itself, and ``CHIPLINE_HOST_INTERPRETERS`` names
others, a JSON object from framework (or a package's SHA-256 digest) to the path of a Python.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import HostError, PackageError
from tasks.package.builtin import CNTK_PROBLEM, CNTK_REMEDY
from tasks.package.definition import ModelDefinition
from tasks.settings import settings

VARIABLE = "CHIPLINE_HOST_INTERPRETERS"
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Framework:
    """A framework that packages name.

    Attributes:
        name: as packages spell it.
        modules: top-level modules that must be importable.
        requirements: what pip installs for it.
        environment: the folder of the environment of its own, which is found by itself; empty where it
            lives in the main one.
        target: what ``make`` is asked for to build that environment; empty where there is no lock for it.
    """

    name: str
    modules: tuple[str, ...]
    requirements: tuple[str, ...]
    environment: str = ""
    target: str = ""


FRAMEWORKS = (
    Framework("PyTorch", ("torch", "torchvision"), ("torch", "torchvision")),
    Framework("ONNX", ("onnxruntime",), ("onnxruntime",)),
    Framework("TensorFlow", ("tensorflow",), ("tensorflow",), "tensorflow", "tensorflow"),
    # Keras comes with TensorFlow, which runs it.
    Framework("Keras", ("keras", "tensorflow"), ("tensorflow",), "tensorflow", "tensorflow"),
    Framework("arcgis", ("arcgis",), ("arcgis",), "arcgis"),
)

# Modules that functions import, by the name that pip knows. Others are not guessed: a name that a foreign
# function chose must not become a command that installs whatever bears it.
_REQUIREMENTS = {
    "numpy": "numpy", "torch": "torch", "torchvision": "torchvision", "tensorflow": "tensorflow",
    "keras": "tensorflow", "onnxruntime": "onnxruntime", "onnx": "onnx", "arcgis": "arcgis",
    "fastai": "'fastai<2'", "cv2": "opencv-python-headless", "PIL": "pillow", "skimage": "scikit-image",
    "sklearn": "scikit-learn", "scipy": "scipy", "pandas": "pandas", "matplotlib": "matplotlib",
    "timm": "timm", "ensemble_boxes": "ensemble-boxes", "GPUtil": "gputil", "yaml": "pyyaml",
    "transformers": "transformers", "shapely": "shapely", "h5py": "h5py",
}  # fmt: skip


def framework_of(name: str | None) -> Framework | None:
    """The framework that a definition's ``Framework`` means; None for one that is not known here."""
    folded = _folded(name)
    return next((known for known in FRAMEWORKS if _folded(known.name) == folded), None)


def interpreter_for(definition: ModelDefinition, digest: str) -> Path:
    """The Python for a package: by its digest, by its framework, by an environment found, else this one.

    Raises:
        PackageError: CNTK without an interpreter of its own, or asking for ArcGIS's own CNTK function.
        HostError: the setting names a file that is not there or cannot be run.
    """
    configured = settings().host_interpreters
    key = _configured_key(configured, definition.framework, digest)
    if _folded(definition.framework) == "cntk" and (key is None or definition.builtin_function is not None):
        raise PackageError(f"The package cannot run: {CNTK_PROBLEM}.", CNTK_REMEDY)
    if key is None:
        framework = framework_of(definition.framework)
        found = found_environment(framework) if framework is not None else None
        return found or Path(sys.executable)
    path = configured[key].expanduser()
    if not (path.is_absolute() and path.is_file() and os.access(path, os.X_OK)):
        raise HostError(
            f"The interpreter for {key} is {path}, which is not an absolute path of a program.",
            f'Correct {VARIABLE}, a JSON object such as {{"TensorFlow": "/opt/tensorflow/bin/python"}}.',
        )
    return path


def found_environment(framework: Framework) -> Path | None:
    """The Python of the framework's own environment, where one was built in a place that is looked into."""
    places = [folder / "bin" / "python" for folder in _places(framework)]
    return next((python for python in places if os.access(python, os.X_OK)), None)


def _places(framework: Framework) -> list[Path]:
    """Where its environment is looked for: where ``make`` puts it, and where the remedy without make does."""
    if not framework.environment:
        return []
    made = [_ROOT / f".venv-{framework.environment}"] if framework.target else []
    return [*made, settings().cache / "interpreters" / framework.environment]


def install_command(interpreter: Path, requirements: Sequence[str], *, has_pip: bool = True) -> str:
    """The command that installs into an environment; through uv where the environment has no pip."""
    python, names = shlex.quote(str(interpreter)), " ".join(requirements)
    return f"{python} -m pip install {names}" if has_pip else f"uv pip install --python {python} {names}"


def framework_remedy(framework: Framework, interpreter: Path, *, has_pip: bool = True) -> str:
    """How a framework gets to where its packages run: into the interpreter, or an environment of its own."""
    if not framework.environment or interpreter != Path(sys.executable):
        return f"Install it: {install_command(interpreter, framework.requirements, has_pip=has_pip)}"
    if framework.target and (_ROOT / "Makefile").is_file():
        return (
            f"Give it an environment of its own: make -C {shlex.quote(str(_ROOT))} {framework.target} "
            f"(builds .venv-{framework.environment}, which is found by itself)."
        )
    folder = _places(framework)[-1]
    python = folder / "bin" / "python"
    names = " ".join(("numpy", *framework.requirements))
    return (
        f"Give it an environment of its own: {shlex.quote(sys.executable)} -m venv "
        f"{shlex.quote(str(folder))} && {shlex.quote(str(python))} -m pip install {names} "
        f"(found there by itself; in another place name it in {VARIABLE})."
    )


def import_remedy(module: str, interpreter: Path, *, has_pip: bool) -> str:
    """How a module that a function could not import gets there."""
    top = module.partition(".")[0]
    framework = next((known for known in FRAMEWORKS if top in known.modules), None)
    if framework is not None:
        return framework_remedy(framework, interpreter, has_pip=has_pip)
    requirement = _REQUIREMENTS.get(top)
    if requirement is not None:
        return f"Install it: {install_command(interpreter, [requirement], has_pip=has_pip)}"
    return f"Install what it imports in the interpreter that runs it ({interpreter})."


def _configured_key(configured: Mapping[str, Path], framework: str | None, digest: str) -> str | None:
    if digest in configured:
        return digest
    folded = _folded(framework)
    return next((key for key in configured if folded and _folded(key) == folded), None)


def _folded(name: str | None) -> str:
    folded = (name or "").strip().lower()
    # arcgis.learn writes the module of its functions as the framework.
    return "arcgis" if folded.startswith("arcgis.") else {"onnxruntime": "onnx"}.get(folded, folded)
