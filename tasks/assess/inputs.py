"""What is assessed: detected objects from files, their classes in the truth's terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely

from tasks.errors import BadInputError, LabelError, NotFoundError
from tasks.labels.schema import ClassSchema
from tasks.labels.vector import read_frame, split_layer
from tasks.store import ObjectStore, is_local, iter_files, join, read_manifest, resolve_folder

if TYPE_CHECKING:
    import geopandas

CLASS_FIELDS = ("classvalue", "value", "class", "classname")
CONFIDENCE_FIELDS = ("confidence", "score")
# In the order of preference, where a folder holds the same layer in several formats.
_FORMATS = (".parquet", ".gpkg", ".fgb", ".geojson", ".shp")
_VECTOR_ENDINGS = {*_FORMATS, ".json", ".zip", ".geoparquet", ".gdb"}


@dataclass(frozen=True)
class DetectedLayer:
    """The objects of one file.

    Attributes:
        uri: where they come from.
        crs_wkt: their CRS.
        geometries: (n,) valid polygons; empty where the file has no geometry.
        classes: (n,) class values in the truth's terms.
        scores: (n,) confidences, 1 where the file has none.
    """

    uri: str
    crs_wkt: str
    geometries: npt.NDArray[np.object_]
    classes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]


class Classes:
    """Class values and names of the truth, to which classes that only the results have are added."""

    def __init__(self, schema: ClassSchema) -> None:
        self._schema = schema
        self.names: dict[int, str] = {item.value: item.name for item in schema}
        self._added: dict[str, int] = {}

    def value_of(self, text: str) -> int:
        """The value of a class given as name or as value."""
        known = self._schema.value_of(text)
        if known is not None:
            return known
        if text not in self._added:
            value = _as_integer(text)
            if value is None or value in self.names:
                value = max(self.names, default=0) + 1
            self._added[text] = value
            self.names[value] = text
        return self._added[text]


def _as_integer(text: str) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def vector_files(store: ObjectStore, uri: str) -> list[str]:
    """The vector files that a URI names: itself, or those of a folder (one format of each layer).

    The folder of an output's name stands for its newest published folder.

    Raises:
        NotFoundError: a folder without a vector file.
    """
    base, _ = split_layer(uri)
    if PurePosixPath(base).suffix.lower() in _VECTOR_ENDINGS:
        return [uri]
    folder = resolve_folder(store, base)
    if is_local(folder) and not Path(folder).is_dir():
        raise NotFoundError(f"There is no vector file or folder {uri}.", "Check the path.")
    if read_manifest(store, folder) is not None:
        names = [record.path for record in iter_files(store, folder)]
    else:
        names = [info.uri.removeprefix(folder + "/") for info in store.list(folder + "/")]
    # Candidates lie beside their layer for another threshold; they are no result.
    names = [name for name in names if not PurePosixPath(name).stem.endswith("_candidates")]
    by_stem: dict[str, str] = {}
    for ending in reversed(_FORMATS):
        by_stem.update({name[: -len(ending)]: name for name in names if name.lower().endswith(ending)})
    if not by_stem:
        raise NotFoundError(
            f"{folder} holds no vector file.", "Name a vector file, or the folder of a published layer."
        )
    return [join(folder, name) for name in sorted(by_stem.values())]


def read_detections(uris: Sequence[str], class_field: str | None, classes: Classes) -> list[DetectedLayer]:
    """Read detected objects; a file without any is fine.

    Args:
        uris: vector files.
        class_field: field with the class; None searches :data:`CLASS_FIELDS`.
        classes: of the truth; classes that only the results have are added to it.

    Raises:
        LabelError: unreadable, no CRS, an unknown field.
        BadInputError: none of the classes is one of the truth's.
    """
    known = set(classes.names)
    layers = [_layer(uri, read_frame(uri), class_field, classes) for uri in uris]
    found = {int(value) for layer in layers for value in layer.classes}
    if found and known and not found & known:
        raise BadInputError(
            f"None of the detected classes ({_names(found, classes)}) is among the truth's "
            f"({_names(known, classes)}).",
            "Name the fields that agree with detected_class_value_field and ground_truth_class_value_field.",
        )
    return layers


def _names(values: set[int], classes: Classes) -> str:
    return ", ".join(f"{value} {classes.names[value]}" for value in sorted(values)[:10])


def _layer(
    uri: str, frame: geopandas.GeoDataFrame, class_field: str | None, classes: Classes
) -> DetectedLayer:
    if frame.crs is None:
        raise LabelError(
            f"The detected objects {uri} have no coordinate reference system.",
            "Assign one, for example with ogr2ogr -a_srs EPSG:32612.",
        )
    fields = {str(name).lower(): str(name) for name in frame.columns if name != frame.geometry.name}
    if class_field is not None and class_field.lower() not in fields:
        raise LabelError(
            f"The detected objects {uri} have no field {class_field!r}.",
            f"Use one of: {', '.join(fields.values()) or 'none, the file has no fields'}.",
        )
    wanted = [class_field.lower()] if class_field is not None else CLASS_FIELDS
    column = next((fields[name] for name in wanted if name in fields), None)
    confidence = next((fields[name] for name in CONFIDENCE_FIELDS if name in fields), None)
    geometries = np.array(shapely.force_2d(np.asarray(frame.geometry.array, dtype=object)))
    geometries[shapely.is_missing(geometries)] = shapely.Polygon()
    bad = ~shapely.is_valid(geometries)
    if bad.any():
        geometries[bad] = shapely.make_valid(geometries[bad], method="structure", keep_collapsed=False)
    count = len(frame)
    values = [1] * count if column is None else [_value(item, classes) for item in frame[column]]
    scores = (
        np.ones(count)
        if confidence is None
        else np.asarray([_number(item) for item in frame[confidence]], dtype=np.float64)
    )
    return DetectedLayer(
        uri, frame.crs.to_wkt(), geometries, np.array(values, dtype=np.int64).reshape(count), scores
    )


def _value(item: Any, classes: Classes) -> int:
    return classes.value_of(str(item))


def _number(item: Any) -> float:
    """A confidence; NaN for what is none, which counts as the least confident."""
    try:
        return float(item)
    except (TypeError, ValueError):
        return float("nan")
