"""What the built-in functions share: the definition, the split of a block into chips, answers.

Runs in the host's child, in the framework's interpreter (Python 3.9 or later): numpy and the standard library
only. The interface is stated in docs/formats/python-raster-function.md.
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any

import numpy as np

_TRAILING_COMMA = re.compile(r",(\s*[\]}])")


class Definition:
    """A model definition, given as the path of an ``.emd`` or as its text.

    Attributes:
        folder: where the package lies; the working folder where the text was given.
        values: the JSON object.
        classes: (value, name, (red, green, blue)) in the definition's order.
        height, width: of the network's input in pixels.
    """

    def __init__(self, model: str) -> None:
        try:
            with open(model, encoding="utf-8-sig") as file:  # noqa: PTH123
                text = file.read()
            self.folder = os.path.dirname(os.path.abspath(model))  # noqa: PTH100, PTH120
        except (OSError, ValueError):
            text, self.folder = model, os.getcwd()  # noqa: PTH109
        try:
            values = json.loads(text)
        except ValueError:
            # Published samples have commas before closing brackets.
            values = json.loads(_TRAILING_COMMA.sub(r"\1", text))
        self.values: dict[str, Any] = values
        self.height, self.width = self._length("ImageHeight"), self._length("ImageWidth")
        self.classes = [_class(item) for item in values.get("Classes") or []]

    def _length(self, key: str) -> int:
        value = self.values.get(key)
        if value is None or int(value) < 1:
            raise ValueError(f"the model definition has no {key}: set it to the network's input size")
        return int(value)

    def path(self, named: Any) -> str:
        """A path of the definition, relative to its folder, often Windows-made, as one of this system."""
        parts = [part for part in str(named).replace("\\", "/").split("/") if part not in ("", ".")]
        return os.path.join(self.folder, *parts)  # noqa: PTH118

    @property
    def weights(self) -> str:
        """The file of the weights."""
        return self.path(self.values["ModelFile"])

    @property
    def bands(self) -> tuple[Any, ...] | None:
        """Bands to hand over, in the network's order; None: all."""
        given = self.values.get("ExtractBands")
        return tuple(given) if given else None

    def number(self, key: str, default: float) -> float:
        """A number of the definition, or ``default``."""
        value = self.values.get(key)
        return default if value is None else float(value)

    @property
    def padding(self) -> int:
        """Pixels of a chip's side that its neighbour answers for, unless said: a quarter of the chip."""
        quarter = min(self.height, self.width) // 4
        return int(self.number("Padding", max(quarter, self.number("ModelPadding", 0))))

    def class_name(self, one_based: int) -> str:
        """The name of a network's class: the order in Classes counts, not the value."""
        if not 1 <= one_based <= len(self.classes):
            raise ValueError(
                f"the network found the class {one_based}, and the definition lists {len(self.classes)} "
                "Classes: list all that the network knows, in its order"
            )
        return self.classes[one_based - 1][1]

    def attribute_table(self) -> str:
        """Esri JSON of the raster attribute table: value, class and colour."""
        kinds = {"OID": "OID", "Class": "String"}
        names = ("OID", "Value", "Class", "Red", "Green", "Blue")
        rows = [
            {"attributes": dict(zip(names, (number, value, name, *color)))}  # noqa: B905 - Python 3.9
            for number, (value, name, color) in enumerate(self.classes, 1)
        ]
        table = {
            "objectIdFieldName": "OID",
            "globalIdFieldName": "",
            "geometryType": "",
            "spatialReference": {},
            "fields": [esri_field(name, kinds.get(name, "Integer")) for name in names],
            "features": rows,
        }
        return json.dumps(table)


def _class(item: dict[str, Any]) -> tuple[int, str, tuple[int, int, int]]:
    value = item.get("Value", item.get("ClassValue", 0))
    name = item.get("Name", item.get("ClassName", value))
    red, green, blue = item.get("Color") or (128, 128, 128)
    return int(value), str(name), (int(red), int(green), int(blue))


def esri_field(name: str, kind: str) -> dict[str, str]:
    """A field as Esri JSON describes it."""
    return {"name": name, "type": f"esriFieldType{kind}", "alias": name}


# -- arguments ---------------------------------------------------------------------------------------------


def parameter(
    name: str, kind: str, value: Any, title: str, description: str, domain: Any = None
) -> dict[str, Any]:
    """One entry of ``getParameterInfo``; values are texts, as hosts hand them back."""
    entry = {"name": name, "dataType": kind, "value": str(value), "required": False}
    entry.update(displayName=title, description=description)
    if domain is not None:
        entry["domain"] = domain
    return entry


def leading_parameters(raster: str = "raster") -> list[dict[str, Any]]:
    """The three parameters that every function starts with; a host fills them in.

    Args:
        raster: ``raster``, or ``rasters`` for functions that take a batch of features.
    """
    return [
        {"name": raster, "dataType": raster, "required": True, "displayName": "Raster", "description": ""},
        {"name": "model", "dataType": "string", "required": True, "displayName": "Definition"},
        {"name": "device", "dataType": "numeric", "value": -1, "displayName": "Device"},
    ]


def padding_parameter(definition: Definition) -> dict[str, Any]:
    """``padding``, less than half of a chip."""
    return parameter(
        "padding",
        "GPLong",
        definition.padding,
        "Padding",
        "Pixels at each side of a tile whose predictions are left to the neighbouring tile.",
        [int(definition.number("ModelPadding", 0)), (min(definition.height, definition.width) - 1) // 2],
    )


def batch_parameters(definition: Definition) -> list[dict[str, Any]]:
    """``batch_size``, unless the definition fixes it."""
    if definition.values.get("BatchSize") is not None:
        return []
    text = "Tiles per call of the network; the largest square number within it is used."
    return [parameter("batch_size", "GPLong", 4, "Batch size", text, [1, 1024])]


def threshold_parameter(default: float) -> dict[str, Any]:
    """``score_threshold``: what is reported."""
    text = "Only objects with a higher confidence (0-1) are reported."
    return parameter("score_threshold", "GPDouble", default, "Confidence score threshold", text, [0.0, 1.0])


# -- pixels ------------------------------------------------------------------------------------------------


class Tiles:
    """How the block of one call splits into chips: ``side`` x ``side`` of them, overlapping by their padding.

    Attributes:
        height, width: of a chip.
        padding: pixels of a chip's side that its neighbour answers for.
        side: chips in each direction; ArcGIS's rule is the largest square number that the batch holds.
        inner_rows, inner_cols: of a chip without its padding.
        rows, cols: of the inner block.
    """

    def __init__(self, definition: Definition, scalars: dict[str, Any], *, batched: bool = True) -> None:
        self.height, self.width = definition.height, definition.width
        given = scalars.get("padding", "")
        self.padding = int(float(given)) if given != "" else definition.padding
        self.model_padding = int(definition.number("ModelPadding", 0))
        if not self.model_padding <= self.padding < min(self.height, self.width) / 2:
            raise ValueError(
                f"padding {self.padding} does not fit a tile of {self.height} x {self.width} pixels and a "
                f"ModelPadding of {self.model_padding}"
            )
        batch = int(float(definition.values.get("BatchSize") or scalars.get("batch_size") or 1))
        self.side = math.isqrt(batch) if batched else 1
        if self.side < 1:
            raise ValueError(f"batch_size is {batch}, must be at least 1")
        self.inner_rows = self.height - 2 * self.padding
        self.inner_cols = self.width - 2 * self.padding
        self.rows, self.cols = self.inner_rows * self.side, self.inner_cols * self.side

    def configuration(self, definition: Definition) -> dict[str, Any]:
        """The keys of ``getConfiguration`` that all of them give."""
        answer: dict[str, Any] = {
            "padding": self.padding,
            "tx": self.cols,
            "ty": self.rows,
            "fixedTileSize": 1,
            "batch_size": self.side**2,
            "inheritProperties": 2 | 4 | 8,  # all but the pixel type
            "invalidateProperties": 2 | 4 | 8,  # statistics, histogram, key properties
            "inputMask": True,
        }
        if definition.bands is not None:
            answer["extractBands"] = definition.bands
        if definition.values.get("DataRange"):
            answer["dataRange"] = tuple(definition.values["DataRange"])
        return answer

    def places(self) -> list[tuple[int, int]]:
        """(row, col) of each chip's top-left corner in the block with its padding."""
        steps = range(self.side)
        return [(row * self.inner_rows, col * self.inner_cols) for row in steps for col in steps]

    def chips(self, block: np.ndarray) -> np.ndarray:
        """(bands, rows, cols) with the padding -> (chips, bands, height, width).

        Raises:
            ValueError: a block of another size than was asked for.
        """
        wanted = (self.rows + 2 * self.padding, self.cols + 2 * self.padding)
        if block.shape[1:] != wanted:
            raise ValueError(f"a block of {block.shape[1:]} pixels, where {wanted} were asked for")
        chips = [block[:, row : row + self.height, col : col + self.width] for row, col in self.places()]
        return np.stack(chips)

    def joined(self, chips: np.ndarray) -> np.ndarray:
        """(chips, height, width) -> (1, rows, cols) of the inner block: their inner parts abut.

        The network may have cut off the definition's ModelPadding itself.

        Raises:
            ValueError: answers of another size.
        """
        full, own = (self.height, self.width), 2 * self.model_padding
        if chips.shape[1:] not in (full, (self.height - own, self.width - own)):
            raise ValueError(
                f"the network answers with {chips.shape[1:]} pixels for chips of {full}: ImageHeight, "
                "ImageWidth and ModelPadding must be what it was exported with"
            )
        result = np.zeros((1, self.rows, self.cols), chips.dtype)
        pad = self.padding - (self.height - chips.shape[1]) // 2
        for chip, (row, col) in zip(chips, self.places()):  # noqa: B905 - Python 3.9
            inner = chip[pad : pad + self.inner_rows, pad : pad + self.inner_cols]
            result[0, row : row + self.inner_rows, col : col + self.inner_cols] = inner
        return result

    def inner(self, plane: np.ndarray) -> np.ndarray:
        """(rows, cols) with the padding -> the inner block's part of it."""
        return plane[self.padding : self.padding + self.rows, self.padding : self.padding + self.cols]


def cleaned(pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The block with 0 where it is masked out or not finite, and the valid pixels, bool (rows, cols)."""
    block = np.array(pixels, copy=True)
    valid = np.broadcast_to(np.asarray(mask), block.shape) != 0
    if block.dtype.kind == "f":
        valid = valid & np.isfinite(block)
    block[~valid] = 0
    return block, valid.any(axis=0)


def channels_last(chips: np.ndarray) -> np.ndarray:
    """(n, bands, rows, cols) -> (n, rows, cols, bands)."""
    return np.ascontiguousarray(chips.transpose(0, 2, 3, 1))


def as_taken(chips: np.ndarray, dtype: Any) -> np.ndarray:
    """The chips as the network takes them; frameworks would let numbers overflow without a word.

    Raises:
        ValueError: values that the network's type cannot hold.
    """
    wanted = np.dtype(dtype)
    if chips.dtype == wanted:
        return chips
    if wanted.kind in "iu" and chips.size:
        if chips.dtype.kind == "f":
            chips = np.rint(chips)
        lowest, highest, limits = chips.min(), chips.max(), np.iinfo(wanted)
        if lowest < limits.min or highest > limits.max:
            raise ValueError(
                f"the network takes {wanted} pixels, and the raster holds values from {lowest} to {highest}: "
                f"rescale the raster to {limits.min}-{limits.max}, as in training"
            )
    return chips.astype(wanted)


# -- answers -----------------------------------------------------------------------------------------------

FIELDS = (("OID", "OID"), ("Class", "String"), ("Confidence", "Double"))
"""Of detected objects: name and Esri's type."""
LABEL_FIELDS = (("OID", "OID"), ("Label", "String"), ("Confidence", "String"))
"""Of labelled features."""

_Fields = tuple[tuple[str, str], ...]


def fields_text(fields: _Fields = FIELDS) -> str:
    """What ``getFields`` gives."""
    return json.dumps({"fields": [esri_field(*field) for field in (*fields, ("Shape", "Geometry"))]})


def feature_set(features: list[dict[str, Any]], fields: _Fields = FIELDS) -> dict[str, str]:
    """What ``vectorize`` gives: an Esri feature set as JSON text."""
    document = {
        "displayFieldName": "",
        "fieldAliases": {name: name for name, _ in fields},
        "geometryType": "esriGeometryPolygon",
        "fields": [esri_field(*field) for field in fields],
        "features": features,
    }
    return {"output_vectors": json.dumps(document)}


def feature(
    number: int, name: str, confidence: Any, rings: list[list[list[float]]], key: str = "Class"
) -> dict[str, Any]:
    """One object of a feature set; rings in pixels of the inner block, x right, y down, not closed."""
    return {
        "attributes": {"OID": number, key: name, "Confidence": confidence},
        "geometry": {"rings": rings},
    }
