"""The Esri layout of training data on disk: one module per metadata format, which writes and reads it.

The formats are described in docs/formats/training-data.md. Names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.training_data.layout import METADATA_FORMATS
    from tasks.training_data.reader import (
        BandStats,
        Chip,
        TrainingData,
        open_training_data,
        read_boxes,
        read_chip_image,
        read_class_mask,
    )
    from tasks.training_data.statistics import BandStatistics, ClassStatistics

_HOME = {
    "METADATA_FORMATS": "layout",
    "BandStats": "reader",
    "Chip": "reader",
    "TrainingData": "reader",
    "open_training_data": "reader",
    "read_boxes": "reader",
    "read_chip_image": "reader",
    "read_class_mask": "reader",
    "BandStatistics": "statistics",
    "ClassStatistics": "statistics",
}

__all__ = [
    "METADATA_FORMATS",
    "BandStatistics",
    "BandStats",
    "Chip",
    "ClassStatistics",
    "TrainingData",
    "open_training_data",
    "read_boxes",
    "read_chip_image",
    "read_class_mask",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tasks.training_data.{_HOME[name]}"), name)
