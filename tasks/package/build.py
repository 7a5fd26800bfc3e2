"""From a trained network to a package: definition, weights, source, inference function, metrics.

A package that is built here holds all it needs and imports nothing of ours; what its files are is stated in
``docs/formats/emd-dlpk.md``.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from tasks.errors import PackageError
from tasks.labels.schema import ClassSchema
from tasks.package.definition import ModelDefinition
from tasks.package.dlpk import open_package, write_dlpk
from tasks.package.model_card import CARD, TrainingFacts, model_card
from tasks.package.pack import check_name

Kind = Literal["pixels", "objects", "instances", "panoptic", "labels", "images"]

NETWORK_MODULE = "ChiplineNetwork"
OWN_KEY = "Chipline"
"""Key of the definition under which we keep what Esri's format has no key for."""

_FUNCTIONS = Path(__file__).parent / "functions"
# The inference function of each kind, and after it what it is built on.
_FUNCTIONS_OF: dict[Kind, tuple[str, ...]] = {
    "pixels": ("ChiplineImageClassifier.py",),
    "objects": ("ChiplineObjectDetector.py",),
    "instances": ("ChiplineInstanceDetector.py", "ChiplineObjectDetector.py"),
    "panoptic": (
        "ChiplinePanopticSegmenter.py",
        "ChiplineImageClassifier.py",
        "ChiplineInstanceDetector.py",
        "ChiplineObjectDetector.py",
    ),
    "labels": ("ChiplineObjectClassifier.py",),
    "images": ("ChiplineImageTranslator.py",),
}
# Of pixels, where the network finds lines.
_LINE_FUNCTIONS = ("ChiplineLineClassifier.py", "ChiplineImageClassifier.py", "chipline_lines.py")
_TYPE_OF: dict[Kind, str] = {
    "pixels": "ImageClassification",
    "objects": "ObjectDetection",
    "instances": "InstanceDetection",
    "panoptic": "PanopticSegmenter",
    "labels": "ObjectClassification",
    "images": "Pix2Pix",
}
_RUNTIME = ("chipline_runtime.py", "chipline_engines.py", "chipline_agreement.py")


class InputNormalisation(Protocol):
    """``((x - minimum) / (maximum - minimum) - mean) / std`` per band; mean and std are of scaled values."""

    @property
    def minimum(self) -> Sequence[float]: ...
    @property
    def maximum(self) -> Sequence[float]: ...
    @property
    def mean(self) -> Sequence[float]: ...
    @property
    def std(self) -> Sequence[float]: ...
    @property
    def imagenet(self) -> bool: ...


def build_package(
    *,
    kind: Kind,
    name: str,
    network_source: str,
    state_dict: Mapping[str, Tensor],
    classes: ClassSchema,
    normalisation: InputNormalisation,
    tile_size: int,
    cell_size: float | tuple[float, float] | None,
    wkid: int | None,
    band_names: Sequence[str],
    metrics: Mapping[str, Any],
    metrics_html: str,
    characteristics: Mapping[str, bytes],
    extra_definition: Mapping[str, Any],
    into: Path,
    model_name: str = "Chipline",
    backbone: str = "",
    pixel_type: str | None = None,
    extract_bands: Sequence[int] | None = None,
    size_divisor: int = 32,
    padding: int | None = None,
    batch_size: int = 4,
    predict_background: bool = True,
    lines: bool = False,
    threshold: float = 0.5,
    nms_overlap: float = 0.5,
    training: TrainingFacts | None = None,
    own: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``<into>/<name>.dlpk`` and check that it opens and that the weights fit the source.

    Args:
        kind: pixels (``build()`` gives logits (n, 1 + classes, rows, cols), channel 0 the background) or
            objects, instances (``build()`` gives a torchvision detector whose label i is the i-th class;
            instances: with masks) or panoptic (``build()`` gives a ``PanopticSegmenter``, see
            :mod:`tasks.package.panoptic_network`) or labels (``build()`` gives logits (n, classes) of whole
            chips) or images (``build()`` gives networks that make normalised pictures, (n, bands, rows,
            cols); no classes).
        name: stem of the package, its ``.emd`` and its weights.
        network_source: see ``tasks.package.network_source``; must have been made by this installation.
        state_dict: plain tensors by name; they are stored on the CPU.
        classes: in the order of the network's channels or labels.
        normalisation: how pixel values became the network's input in training.
        tile_size: side of a training chip, pixels; the default tile of inference.
        cell_size: of the training imagery, in units of ``wkid``; None if unknown (pixel space).
        wkid: EPSG code of the training imagery.
        band_names: names of the bands that the network takes, in its order.
        metrics: values reached in training; ``per_class`` holds a mapping by class name.
        metrics_html: text of ``model_metrics.html``.
        characteristics: PNG by file name, for ``ModelCharacteristics/``.
        extra_definition: further keys of the definition; they win over the ones made here. Of images the
            ModelType, where it is not Pix2Pix.
        into: an existing folder.
        model_name: ModelName, e.g. UNET.
        backbone: ModelParameters.backbone.
        pixel_type: numpy name of the training imagery's type, checked against imagery at inference.
        extract_bands: 0-based bands of the raster that the network takes; by default the first ones.
        size_divisor: tile sizes must be a multiple of it.
        lines: of pixels: the network finds lines of one class; its function has a threshold and thinning.
        padding, batch_size, predict_background, threshold, nms_overlap: defaults of the arguments.
        training: what the network was trained on, for the model card and for comparing imagery with it.
        own: further entries of our own key: of labels ``InputSize`` (pixels that chips are scaled to) and
            ``SeveralLabels`` (an object may have several classes); of panoptic ``InstanceClasses`` (values of
            the classes that have objects); of images ``Translation``, by direction the ``Network`` (its path
            in what ``build()`` gives), ``Input`` and ``Output`` (``Factor`` and ``Summand`` per band:
            ``x * factor + summand``) and ``PixelType`` of what is made.

    Raises:
        PackageError: something of it is not as it must be.
    """
    check_name(name)
    bands = list(extract_bands) if extract_bands is not None else list(range(len(band_names)))
    _check_sizes(kind, classes, bands, band_names, normalisation, tile_size, size_divisor, padding)
    _check_weights(network_source, state_dict)
    functions = _LINE_FUNCTIONS if lines else _FUNCTIONS_OF[kind]
    definition = ModelDefinition.model_validate(
        {
            "Framework": "PyTorch",
            "ModelConfiguration": NETWORK_MODULE,
            "ModelType": _TYPE_OF[kind],
            "InferenceFunction": functions[0],
            "ModelFile": f"{name}.pth",
            "ModelName": model_name,
            "ModelFormat": "NCHW",
            "ImageHeight": tile_size,
            "ImageWidth": tile_size,
            "ImageSpaceUsed": "PIXEL_SPACE" if cell_size is None else "MAP_SPACE",
            "ExtractBands": bands,
            "Bands": list(band_names),
            "Classes": classes.to_records(),
            "MinCellSize": _cell_size(cell_size, wkid),
            "MaxCellSize": _cell_size(cell_size, wkid),
            "SupportsVariableTileSize": True,
            "BatchSize": batch_size,
            "Padding": tile_size // 4 if padding is None else padding,
            "ModelParameters": {"backbone": backbone, "backend": "pytorch"},
            "resize_to": None,
            **_normalisation_keys(normalisation, bands),
            **({} if training is None else {"AllTilesStats": training.tile_statistics}),
            **_metric_keys(kind, metrics),
            OWN_KEY: {
                **_own_keys(
                    *(kind, classes, metrics, size_divisor, pixel_type, predict_background),
                    *(threshold, nms_overlap),
                ),
                **(own or {}),
            },
            **dict(extra_definition),
        }
    )
    files: dict[str, bytes | Path] = {
        f"{name}.pth": _weights_bytes(state_dict),
        f"{NETWORK_MODULE}.py": network_source.encode(),
        **{file: (_FUNCTIONS / file).read_bytes() for file in (*functions, *_RUNTIME)},
        "model_metrics.html": metrics_html.encode(),
        CARD: model_card(name, definition, training).encode(),
    }
    for picture, content in characteristics.items():
        files[f"ModelCharacteristics/{picture}"] = content
    path = into / f"{name}.dlpk"
    write_dlpk(path, definition, files)
    _check_opens(path)
    return path


def _check_sizes(
    kind: Kind,
    classes: ClassSchema,
    bands: list[int],
    band_names: Sequence[str],
    normalisation: InputNormalisation,
    tile_size: int,
    size_divisor: int,
    padding: int | None,
) -> None:
    problems = []
    if len(classes) == 0 and kind != "images":
        problems.append("there is no class")
    arrays = (normalisation.minimum, normalisation.maximum, normalisation.mean, normalisation.std)
    counts = {len(bands), len(band_names), *(len(values) for values in arrays)}
    if len(counts) != 1:
        problems.append(f"bands, their names and the normalisation differ in number ({sorted(counts)})")
    if not all(math.isfinite(value) for values in arrays for value in values):
        problems.append("the normalisation has numbers that are not finite")
    if tile_size < 1 or tile_size % size_divisor:
        problems.append(f"the tile size {tile_size} is no multiple of {size_divisor}")
    if padding is not None and not 0 <= 2 * padding < tile_size:
        problems.append(f"the padding {padding} does not fit tiles of {tile_size} pixels")
    if problems:
        raise PackageError(
            f"A package for {kind} cannot be built: {'; '.join(problems)}.", "Correct the training's result."
        )


def _check_weights(network_source: str, state_dict: Mapping[str, Tensor]) -> None:
    from tasks.package.network_source import load_network

    for key, tensor in state_dict.items():
        if not isinstance(tensor, Tensor):
            raise PackageError(
                f"The weight {key} is a {type(tensor).__name__}, not a tensor.", "Give a plain state_dict."
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise PackageError(
                f"The weight {key} has values that are not finite: the training has diverged.",
                "Train again with a smaller learning rate.",
            )
    load_network(network_source, state_dict)


def _weights_bytes(state_dict: Mapping[str, Tensor]) -> bytes:
    import torch

    # Plain contiguous tensors of their own: no views into a larger storage, no parameters.
    plain = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state_dict.items()}
    stream = io.BytesIO()
    torch.save(plain, stream)
    stream.seek(0)
    torch.load(stream, weights_only=True)  # whoever opens the package does it this way
    return stream.getvalue()


def _cell_size(cell_size: float | tuple[float, float] | None, wkid: int | None) -> dict[str, Any] | None:
    if cell_size is None:
        return None
    x, y = cell_size if isinstance(cell_size, tuple) else (cell_size, cell_size)
    reference = None if wkid is None else {"wkid": wkid, "latestWkid": wkid}
    return {"x": float(x), "y": float(y), "spatialReference": reference}


def _normalisation_keys(normalisation: InputNormalisation, bands: list[int]) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "IsMultispectral": not normalisation.imagenet,
        "IsImageNetNormalization": bool(normalisation.imagenet),
    }
    if normalisation.imagenet:
        return keys
    # The arrays are per band of the raster; bands that the network does not take get a neutral entry.
    length = max(bands) + 1
    low, high, mean, std = [0.0] * length, [1.0] * length, [0.0] * length, [1.0] * length
    for position, band in enumerate(bands):
        low[band] = float(normalisation.minimum[position])
        high[band] = float(normalisation.maximum[position])
        mean[band] = float(normalisation.mean[position])
        std[band] = float(normalisation.std[position])
    spans = [top - bottom for bottom, top in zip(low, high, strict=True)]
    keys["NormalizationStats"] = {
        "band_min_values": low,
        "band_max_values": high,
        "band_mean_values": [b + m * s for b, m, s in zip(low, mean, spans, strict=True)],
        "band_std_values": [d * s for d, s in zip(std, spans, strict=True)],
        "scaled_min_values": [0.0] * length,
        "scaled_max_values": [1.0] * length,
        "scaled_mean_values": mean,
        "scaled_std_values": std,
    }
    keys["DoNormalize"] = True
    return keys


def _metric_keys(kind: Kind, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The keys under which arcgis.learn keeps what it measured."""
    per_class: Mapping[str, Mapping[str, Any]] = metrics.get("per_class", {})
    if kind in ("objects", "instances", "panoptic"):
        scores = {
            name: row.get("average_precision", row.get("ap"))
            for name, row in per_class.items()
            if row.get("objects", 0) is not None  # of panoptic models some classes have none
        }
        return {"average_precision_score": scores} if scores else {}
    if kind == "images":
        return {name.upper(): f"{metrics[name]:.4e}" for name in ("psnr", "ssim") if metrics.get(name)}
    keys: dict[str, Any] = {}
    if metrics.get("accuracy") is not None:
        keys["accuracy"] = f"{float(metrics['accuracy']):.4e}"
    rows = {
        name: {key: row[key] for key in ("precision", "recall", "f1") if row.get(key) is not None}
        for name, row in per_class.items()
    }
    if any(rows.values()):
        keys["per_class_metrics"] = json.dumps(rows)
    return keys


def _own_keys(
    kind: Kind,
    classes: ClassSchema,
    metrics: Mapping[str, Any],
    size_divisor: int,
    pixel_type: str | None,
    predict_background: bool,
    threshold: float,
    nms_overlap: float,
) -> dict[str, Any]:
    keys: dict[str, Any] = {"Version": 1, "SizeDivisor": size_divisor, "Metrics": dict(metrics)}
    if pixel_type is not None:
        keys["PixelType"] = pixel_type
    if kind in ("pixels", "panoptic"):
        keys["ScoreValues"] = [0, *classes.values]
        keys["PredictBackground"] = predict_background
    if kind not in ("pixels", "images"):
        keys["Threshold"] = threshold
    if kind in ("objects", "instances"):
        keys["NmsOverlap"] = nms_overlap
    if kind not in ("labels", "images"):
        keys["ExecutionEngines"] = True  # its function has the arguments execution_engine and precision
    return keys


def _check_opens(path: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        open_package(path, Path(folder))
