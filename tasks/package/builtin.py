"""Which inference functions are built in: for packages that name a predefined configuration, not a function.

Data only: nothing of a framework is imported, so that a laptop and a worker say the same of a package. The
functions are files in ``tasks/host/builtin``, run in the host's child as a package's own would be. What each
configuration means is stated in docs/formats/python-raster-function.md, "Predefined configurations".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from tasks.package.definition import ModelDefinition

FOLDER = Path(__file__).parents[1] / "host" / "builtin"
"""Where the functions lie."""

SystemFunction = Literal["objectdetector.py", "imageclassifier.py", "objectclassifier.py"]


@dataclass(frozen=True)
class Builtin:
    """One built-in function.

    Attributes:
        file: its file in ``FOLDER``; the class has the same name.
        framework: whose interpreter runs it, as ``tasks.host.interpreters`` spells it.
        configuration: the predefined name, as the format spells it.
        endings: of a ``ModelFile`` that it reads, in lower case; empty: it decides by itself.
        tensors: names that its frozen graph must hold; empty for other weights.
    """

    file: str
    framework: str
    configuration: str
    endings: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The function's file."""
        return FOLDER / self.file

    @property
    def label(self) -> str:
        """For a card: ``built in: TensorFlow DeepLab``."""
        return f"built in: {' '.join(filter(None, (self.framework, self.configuration)))}"


@dataclass(frozen=True)
class NotBuiltIn:
    """Why a definition that asks for a built-in function gets none, and what to do."""

    problem: str
    remedy: str


_GRAPH, _KERAS = (".pb",), (".h5", ".hdf5", ".keras")
_DETECTION_TENSORS = ("image_tensor", "detection_boxes", "detection_scores", "detection_classes")

BUILTIN: dict[tuple[str, str], dict[SystemFunction, Builtin]] = {
    ("tensorflow", "objectdetectionapi"): {
        "objectdetector.py": Builtin(
            "TensorFlowObjectDetector.py", "TensorFlow", "ObjectDetectionAPI", _GRAPH, _DETECTION_TENSORS
        )
    },
    ("tensorflow", "deeplab"): {
        "imageclassifier.py": Builtin(
            "TensorFlowImageClassifier.py",
            "TensorFlow",
            "DeepLab",
            _GRAPH,
            ("ImageTensor", "SemanticPredictions"),
        )
    },
    ("keras", "maskrcnn"): {
        "objectdetector.py": Builtin("KerasMaskDetector.py", "Keras", "MaskRCNN", _KERAS),
        "imageclassifier.py": Builtin("KerasMaskClassifier.py", "Keras", "MaskRCNN", _KERAS),
    },
    ("keras", "kerasclassifier"): {
        "objectclassifier.py": Builtin("KerasObjectClassifier.py", "Keras", "KerasClassifier", _KERAS)
    },
}
"""By framework and configuration (lower case), then by the system function that is asked for."""

GENERIC: dict[SystemFunction, Builtin] = {
    "objectdetector.py": Builtin("GenericObjectDetector.py", "", "ChildObjectDetector"),
    "imageclassifier.py": Builtin("GenericImageClassifier.py", "", "ChildImageClassifier"),
}
"""For any other framework and configuration: a module in the package that defines ``Child…`` classes."""

ONNX: dict[SystemFunction, Builtin] = {
    "objectdetector.py": Builtin("OnnxObjectDetector.py", "ONNX", "detector"),
    "imageclassifier.py": Builtin("OnnxImageClassifier.py", "ONNX", "classifier"),
}
"""For weights in the format ONNX: its file says how it is called, and no configuration is needed."""

_OWN_FUNCTION = "Give the package an inference function of its own and name it in InferenceFunction."
_LATER = {
    ("pytorch", "fastaissd"): NotBuiltIn(
        "the predefined configuration PyTorch FastaiSSD is not built in yet", _OWN_FUNCTION
    ),
    ("pytorch", "featureclassifier"): NotBuiltIn(
        "the predefined configuration PyTorch FeatureClassifier is not built in yet",
        "Save the model again with its inference function (save_inference_file=True), or give the package "
        "a function of its own.",
    ),
}
CNTK_PROBLEM = "it needs CNTK, which ended in 2019 and runs on Python 3.6 at the latest"
CNTK_REMEDY = (
    "In an old CNTK environment write the model as ONNX (model.save('model.onnx', "
    "format=cntk.ModelFormat.ONNX)), and package that file with a function that uses onnxruntime."
)
_BY_MODEL_TYPE: dict[str, SystemFunction] = {
    "ObjectDetection": "objectdetector.py",
    "InstanceDetection": "objectdetector.py",
    "ImageClassification": "imageclassifier.py",
    "ObjectClassification": "objectclassifier.py",
}
_SPELLINGS: dict[SystemFunction, str] = {
    "objectdetector.py": "ObjectDetector.py",
    "imageclassifier.py": "ImageClassifier.py",
    "objectclassifier.py": "ObjectClassifier.py",
}


def resolve(definition: ModelDefinition) -> Builtin | NotBuiltIn | None:
    """The built-in function that a definition asks for.

    Returns:
        None where the definition brings a function of its own, or names neither function nor configuration.
    """
    named = definition.builtin_function
    if named is None:
        return None
    framework, configuration = _folded(definition.framework), _folded(definition.configuration_name)
    if framework == "cntk":
        return NotBuiltIn(CNTK_PROBLEM, CNTK_REMEDY)
    system = system_function(named)
    if system is None:
        listed = ", ".join(_SPELLINGS.values())
        of_arcgis = framework.startswith("arcgis.") or named.lower().startswith("arcgis")
        remedy = "Save the model again with save_inference_file=True." if of_arcgis else _OWN_FUNCTION
        return NotBuiltIn(f"the function {named} is built into ArcGIS and not here (here: {listed})", remedy)
    if definition.is_plain_onnx:
        return ONNX.get(system) or NotBuiltIn(
            f"no function for ONNX is built in for the ModelType {definition.model_type}", _OWN_FUNCTION
        )
    pair = (framework, configuration)
    if pair in _LATER:
        return _LATER[pair]
    if pair in BUILTIN:
        of_pair = BUILTIN[pair]
        # Without a function of its own, a definition is asked by its type what it wants of the network.
        wanted = system if definition.inference_function else _BY_MODEL_TYPE.get(definition.model_type or "")
        found = of_pair.get(wanted) if wanted is not None else None
        return found if found is not None else _other_kind(definition, of_pair)
    if not (framework and configuration):
        return NotBuiltIn(
            f"the built-in function {named} needs a Framework and a ModelConfiguration, and "
            f"{definition.framework!r} and {definition.configuration_name!r} are given",
            "Name both in the .emd; docs/formats/emd-dlpk.md lists the predefined ones.",
        )
    generic = GENERIC.get(system)
    if generic is not None:
        return generic
    return NotBuiltIn(
        f"no function is built in for the framework {definition.framework} and the configuration "
        f"{definition.configuration_name}",
        _OWN_FUNCTION,
    )


def function_identity(definition: ModelDefinition) -> dict[str, str]:
    """What decides a package's answers besides its own files: the source of the built-in functions.

    Returns:
        Nothing for a package with a function of its own; else one entry, for keys of results.
    """
    return {"builtin": _source_digest()} if isinstance(resolve(definition), Builtin) else {}


@cache
def _source_digest() -> str:
    source = hashlib.sha256()
    for path in sorted(FOLDER.glob("*.py")):  # they import each other, so all of them count
        source.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return source.hexdigest()


def system_function(name: str) -> SystemFunction | None:
    r"""The system function that ``[Functions]System\DeepLearning\…\X.py`` names, by its file name."""
    folded = name.strip().lower()
    return next((known for known in _SPELLINGS if known == folded), None)


def _other_kind(definition: ModelDefinition, of_pair: dict[SystemFunction, Builtin]) -> NotBuiltIn:
    types = [kind for kind, system in _BY_MODEL_TYPE.items() if system in of_pair]
    one = next(iter(of_pair.values()))
    asked = definition.inference_function or f"the ModelType {definition.model_type}"
    return NotBuiltIn(
        f"{one.framework} {one.configuration} does not go with {asked}",
        f"Set ModelType to {' or '.join(types)}, and leave InferenceFunction out.",
    )


def _folded(name: str | None) -> str:
    return (name or "").strip().lower()
