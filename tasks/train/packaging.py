"""From a training to its package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import Any, cast

from tasks.labels import ClassSchema
from tasks.package.build import Kind, build_package
from tasks.package.model_card import TrainingFacts
from tasks.train.image_modules import CycleModule, ImageModule
from tasks.train.images import translation_keys
from tasks.train.models.options import BoxOptions, PanopticOptions, PixelOptions, enlargement
from tasks.train.modules import LabelModule
from tasks.train.pairs import input_bands
from tasks.train.parameters import IMAGE_KINDS, LINE_KINDS, PIXEL_KINDS, TrainParameters
from tasks.train.result import Trained
from tasks.training_data import TrainingData, layout, read_chip_image, read_chip_image2

_BATCH = 4
# Names that tools know a package by (docs/formats/emd-dlpk.md).
_MODEL_NAMES = {"CHANGEDETECTOR": "ChangeDetector"}
_PACKAGED_AS: dict[str, Kind] = {
    **dict.fromkeys(PIXEL_KINDS, "pixels"),
    **dict.fromkeys(IMAGE_KINDS, "images"),
}


def build(
    parameters: TrainParameters,
    data: TrainingData,
    trained: Trained,
    *,
    page: str,
    pictures: dict[str, bytes],
    into: Path,
    inputs: Sequence[tuple[str, str]] = (),
) -> Path:
    """Build ``<into>/<output_name>.dlpk``.

    Args:
        data: where classes, bands, cell size and spatial reference come from.
        page: ``model_metrics.html``.
        pictures: PNG by file name.
        inputs: name and identity of each training data folder.
    """
    module, options = trained.module, trained.options
    tile_size, divisor = trained.chip_size, options.size_divisor
    specific: dict[str, Any] = {}
    more: dict[str, Any] = {}
    if isinstance(options, BoxOptions):
        specific = {
            # The confidence where F1 was largest on the validation chips.
            "threshold": float(trained.metrics["threshold"]),
            "nms_overlap": options.nms_overlap,
        }
        if parameters.resize_to is not None:
            # Tiles of the imagery's own cells, which the function scales as the chips were scaled.
            edge = min(data.tile_size)
            specific["own"] = {"ResizeFrom": edge, "ResizeTo": parameters.resize_to}
            more = {"resize_to": parameters.resize_to}
            tile_size, divisor = edge, edge * divisor // gcd(edge * divisor, parameters.resize_to)
    elif isinstance(options, PanopticOptions):
        # The confidence where F1 of the objects was largest; which classes have objects, for people.
        things = cast(tuple[int, ...], module.network.things)
        specific = {
            "threshold": float(trained.metrics["threshold"]),
            "own": {"InstanceClasses": [data.classes.values[label - 1] for label in things]},
        }
    elif isinstance(options, PixelOptions):
        # A network that never learned what background is must not be asked for it.
        specific = {"predict_background": 0 not in options.ignored, "lines": parameters.kind in LINE_KINDS}
    elif isinstance(module, ImageModule | CycleModule):
        own, more = translation_keys(parameters, data, module)
        more["resize_to"] = parameters.resize_to
        specific = {"own": own}
    else:
        assert isinstance(module, LabelModule)
        # Objects are cut out as the chips were, and scaled to the network's input.
        tile_size, divisor = max(data.tile_size), 1
        specific = {
            "own": {"InputSize": parameters.resize_to or trained.chip_size, "SeveralLabels": module.several},
            "threshold": 0.5 if module.several else 0.0,
            "padding": 0,
        }
        more = {
            "MetaDataMode": data.metadata_format,
            "CropSizeFixed": 1,
            "BlackenAroundFeature": int(_blackened(data)),
            "resize_to": parameters.resize_to,
        }
    return build_package(
        kind=_PACKAGED_AS.get(parameters.kind, cast(Any, parameters.kind)),
        name=parameters.output_name,
        network_source=trained.source,
        state_dict=module.network.state_dict(),
        classes=data.classes if parameters.kind not in IMAGE_KINDS else ClassSchema(()),
        normalisation=trained.normalisation,
        tile_size=tile_size,
        cell_size=_cell_size(parameters, data),
        wkid=data.wkid,
        band_names=input_bands(parameters, data),
        metrics=trained.metrics,
        metrics_html=page,
        characteristics=pictures,
        extra_definition={"LearningRate": f"{trained.metrics['learning_rate']:.4e}", **more},
        into=into,
        model_name=parameters.custom_model or _MODEL_NAMES.get(parameters.model_type, parameters.model_type),
        backbone=parameters.backbone,
        pixel_type=_pixel_type(data),
        size_divisor=divisor,
        batch_size=_BATCH,
        training=_facts(data, trained, inputs),
        **specific,
    )


def _cell_size(parameters: TrainParameters, data: TrainingData) -> tuple[float, float] | None:
    """Of what the network sees: pictures that were scaled have other cells than their chips."""
    if data.cell_size is None or parameters.kind not in IMAGE_KINDS:
        return data.cell_size
    x, y = data.cell_size
    factor = enlargement(parameters, min(data.tile_size))
    return x / factor, y / factor


def _pixel_type(data: TrainingData) -> str | None:
    """Of the imagery; None where two dates have different ones."""
    chip = data.chips[0]
    types = {read(chip).dtype.name for read in (read_chip_image, read_chip_image2)[: 1 + bool(chip.image2)]}
    return types.pop() if len(types) == 1 else None


def _blackened(data: TrainingData) -> bool:
    """Whether the chips are 0 outside of their objects, as the training data's own definition says."""
    try:
        definition = json.loads((data.folder / layout.DEFINITION).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return False
    return str(definition.get("BlackenAroundFeature")).lower() in ("1", "true")


def _facts(data: TrainingData, trained: Trained, inputs: Sequence[tuple[str, str]]) -> TrainingFacts:
    places = [chip.footprint for chip in trained.chips if chip.footprint is not None]
    area = None
    if places:
        west, south, east, north = zip(*places, strict=True)
        area = (min(west), min(south), max(east), max(north))
    return TrainingFacts(
        data=tuple(inputs),
        metadata_format=data.metadata_format,
        bands=data.band_stats,
        chips=trained.metrics.get("chips", {}),
        area=area,
        crs="" if data.wkid is None else f"EPSG:{data.wkid}",
    )
