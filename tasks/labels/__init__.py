"""Where truth comes from: class schemas, vector and raster labels, labels seen through a pixel grid.

The names are loaded on first use, because geopandas takes a second to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.labels.mask_objects import objects_of_mask
    from tasks.labels.mask_polygons import MaskRegion, read_mask_polygons
    from tasks.labels.pixels import LabelsInWindow, PixelLabels, labels_on_grid
    from tasks.labels.prepared import LabelFacts, PreparedLabels, open_labels, prepare_labels
    from tasks.labels.raster import RasterLabels, is_raster_labels, open_raster_labels, raster_classes
    from tasks.labels.schema import ClassSchema, LabelClass
    from tasks.labels.schema_file import read_schema_file
    from tasks.labels.template import write_label_template
    from tasks.labels.vector import VectorLabels, read_vector_labels

_HOME = {
    "ClassSchema": "schema",
    "LabelClass": "schema",
    "LabelFacts": "prepared",
    "LabelsInWindow": "pixels",
    "MaskRegion": "mask_polygons",
    "PixelLabels": "pixels",
    "PreparedLabels": "prepared",
    "RasterLabels": "raster",
    "VectorLabels": "vector",
    "is_raster_labels": "raster",
    "labels_on_grid": "pixels",
    "objects_of_mask": "mask_objects",
    "open_labels": "prepared",
    "open_raster_labels": "raster",
    "prepare_labels": "prepared",
    "raster_classes": "raster",
    "read_mask_polygons": "mask_polygons",
    "read_schema_file": "schema_file",
    "read_vector_labels": "vector",
    "write_label_template": "template",
}

__all__ = [
    "ClassSchema",
    "LabelClass",
    "LabelFacts",
    "LabelsInWindow",
    "MaskRegion",
    "PixelLabels",
    "PreparedLabels",
    "RasterLabels",
    "VectorLabels",
    "is_raster_labels",
    "labels_on_grid",
    "objects_of_mask",
    "open_labels",
    "open_raster_labels",
    "prepare_labels",
    "raster_classes",
    "read_mask_polygons",
    "read_schema_file",
    "read_vector_labels",
    "write_label_template",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tasks.labels.{_HOME[name]}"), name)
