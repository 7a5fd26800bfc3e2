"""The Esri layout of training data on disk: one module per metadata format, which writes and reads it.

The formats are described in docs/formats/training-data.md. Names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.training_data.formats import FORMATS, format_of
    from tasks.training_data.reader import (
        BandStats,
        Chip,
        TrainingData,
        open_training_data,
        read_boxes,
        read_chip,
        read_chip2,
        read_chip_image,
        read_chip_image2,
        read_class_mask,
        read_instances,
    )
    from tasks.training_data.statistics import BandStatistics, ClassStatistics

_HOME = {
    "FORMATS": "formats",
    "format_of": "formats",
    "BandStats": "reader",
    "Chip": "reader",
    "TrainingData": "reader",
    "open_training_data": "reader",
    "read_boxes": "reader",
    "read_chip": "reader",
    "read_chip2": "reader",
    "read_chip_image": "reader",
    "read_chip_image2": "reader",
    "read_class_mask": "reader",
    "read_instances": "reader",
    "BandStatistics": "statistics",
    "ClassStatistics": "statistics",
}

__all__ = [
    "FORMATS",
    "BandStatistics",
    "BandStats",
    "Chip",
    "ClassStatistics",
    "TrainingData",
    "format_of",
    "open_training_data",
    "read_boxes",
    "read_chip",
    "read_chip2",
    "read_chip_image",
    "read_chip_image2",
    "read_class_mask",
    "read_instances",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tasks.training_data.{_HOME[name]}"), name)
