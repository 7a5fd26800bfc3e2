"""Where truth comes from: class schema, vector labels, labels seen through a pixel grid.

The names are loaded on first use, because geopandas takes a second to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.labels.mask_polygons import MaskRegion, read_mask_polygons
    from tasks.labels.pixels import LabelsInWindow, PixelLabels, labels_on_grid
    from tasks.labels.prepared import LabelFacts, PreparedLabels, open_labels, prepare_labels
    from tasks.labels.schema import ClassSchema, LabelClass
    from tasks.labels.vector import VectorLabels, read_vector_labels

_HOME = {
    "ClassSchema": "schema",
    "LabelClass": "schema",
    "LabelFacts": "prepared",
    "LabelsInWindow": "pixels",
    "MaskRegion": "mask_polygons",
    "PixelLabels": "pixels",
    "PreparedLabels": "prepared",
    "labels_on_grid": "pixels",
    "open_labels": "prepared",
    "prepare_labels": "prepared",
    "read_mask_polygons": "mask_polygons",
    "VectorLabels": "vector",
    "read_vector_labels": "vector",
}

__all__ = [
    "ClassSchema",
    "LabelClass",
    "LabelFacts",
    "LabelsInWindow",
    "MaskRegion",
    "PixelLabels",
    "PreparedLabels",
    "VectorLabels",
    "labels_on_grid",
    "open_labels",
    "prepare_labels",
    "read_mask_polygons",
    "read_vector_labels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tasks.labels.{_HOME[name]}"), name)
