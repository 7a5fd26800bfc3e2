"""From a training to its package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.package.build import build_package
from tasks.package.model_card import TrainingFacts
from tasks.train.models.options import DetectorOptions
from tasks.train.modules import ObjectModule, PixelModule
from tasks.train.parameters import TrainParameters
from tasks.train.result import Trained
from tasks.training_data import TrainingData, read_chip_image

_BATCH = 4


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
    module = trained.module
    assert isinstance(module, PixelModule | ObjectModule)
    options = module.options
    divisor = options.size_divisor
    specific: dict[str, Any] = {}
    if isinstance(options, DetectorOptions):
        specific = {
            # The confidence where F1 was largest on the validation chips.
            "threshold": float(trained.metrics["threshold"]),
            "nms_overlap": options.nms_overlap,
        }
    else:
        # A network that never learned what background is must not be asked for it.
        specific = {"predict_background": 0 not in options.ignored}
    return build_package(
        kind=parameters.kind,
        name=parameters.output_name,
        network_source=trained.source,
        state_dict=module.network.state_dict(),
        classes=data.classes,
        normalisation=trained.normalisation,
        tile_size=trained.chip_size,
        cell_size=data.cell_size,
        wkid=data.wkid,
        band_names=data.band_names,
        metrics=trained.metrics,
        metrics_html=page,
        characteristics=pictures,
        extra_definition={"LearningRate": f"{trained.metrics['learning_rate']:.4e}"},
        into=into,
        model_name=parameters.model_type,
        backbone=parameters.backbone_model,
        pixel_type=np.dtype(read_chip_image(data.chips[0]).dtype).name,
        size_divisor=divisor,
        batch_size=_BATCH,
        training=_facts(data, trained, inputs),
        **specific,
    )


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
