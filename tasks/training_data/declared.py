"""What the side files of a training data folder declare, read with the tolerance that real ones ask for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import LabelError, TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import layout

_INSTANCE_CLASSES = "Panoptic_Segmentation_Instance_Classes"


@dataclass(frozen=True)
class BandStats:
    """One band over all chips, in pixel values."""

    name: str
    minimum: float
    maximum: float
    mean: float
    std: float


@dataclass(frozen=True)
class Declared:
    """The side files of a folder.

    Attributes:
        folder: where they are.
        definition: the template ``.emd``; None where there is none.
        stats: esri_accumulated_stats.json; None where there is none.
    """

    folder: Path
    definition: Mapping[str, Any] | None
    stats: Mapping[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> Declared:
        """Read them.

        Raises:
            TrainingDataError: a file is there and is no JSON object.
        """
        return cls(folder, _json(folder / layout.DEFINITION), _json(folder / layout.ACCUMULATED_STATS))

    def key(self, name: str) -> object:
        """A key of the ``.emd``."""
        return (self.definition or {}).get(name)

    def stat(self, name: str) -> object:
        """A key of the statistics."""
        return (self.stats or {}).get(name)

    @property
    def metadata_format(self) -> str:
        """As the statistics name it, else the ``.emd``; empty where neither does."""
        return str(self.stat("MetaDataMode") or self.key("MetaDataMode") or "")

    @property
    def classes(self) -> ClassSchema:
        """The classes, background left out; none where none are named.

        Raises:
            TrainingDataError: they cannot be understood.
        """
        return self._classes(self.key("Classes") or self.stat("Classes"))

    @property
    def instance_classes(self) -> ClassSchema | None:
        """The classes of objects, where they are named apart.

        Raises:
            TrainingDataError: they cannot be understood.
        """
        return self._classes(self.key(_INSTANCE_CLASSES)) if self.key(_INSTANCE_CLASSES) else None

    def _classes(self, records: object) -> ClassSchema:
        if not isinstance(records, list):  # nothing, or a placeholder
            return ClassSchema(())
        try:
            return ClassSchema.from_records(records)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = error.problem if isinstance(error, LabelError) else error
            raise TrainingDataError(
                f"The classes of {self.folder} cannot be understood: {why}.",
                f'Write them in {layout.DEFINITION} as {{"Value": 1, "Name": "Tree", "Color": [0, 128, 0]}}.',
            ) from error

    @property
    def bands(self) -> int | None:
        """The number of bands."""
        return whole(self.stat("NumBands"))

    @property
    def tile_size(self) -> tuple[int, int] | None:
        """(rows, cols), where chips may differ in size."""
        if self.key("CropTileMode") != "Variable_Size":
            return None
        rows, cols = whole(self.stat("TileSizeY")), whole(self.stat("TileSizeX"))
        return (rows, cols) if rows and cols else None

    def band_names(self, bands: int) -> tuple[str, ...]:
        """As declared for that many bands; else Red, Green, Blue or Band_1, …."""
        properties = self.key("InputRastersProps")
        names = properties.get("BandNames") if isinstance(properties, dict) else None
        if isinstance(names, list) and len(names) == bands:
            return tuple(str(name) for name in names)
        if bands == 3:
            return ("Red", "Green", "Blue")
        return tuple(f"Band_{number}" for number in range(1, bands + 1))

    def band_stats(self, names: tuple[str, ...]) -> tuple[BandStats, ...]:
        """Of AllTilesStats or BandStatsState; none where neither is usable."""
        tiles = self.key("AllTilesStats")
        if isinstance(tiles, list) and len(tiles) == len(names):
            return _stats(names, [_of_tiles(item) for item in tiles])
        state = self.stat("BandStatsState")
        if isinstance(state, list) and len(state) == len(names):
            return _stats(names, [_of_state(item) for item in state])
        return ()

    def band_stats2(self) -> tuple[BandStats, ...]:
        """Of AllTilesStats2, the second raster's."""
        tiles = self.key("AllTilesStats2")
        if not isinstance(tiles, list):
            return ()
        names = [str(item.get("BandName", "")) if isinstance(item, dict) else "" for item in tiles]
        return _stats(tuple(names), [_of_tiles(item) for item in tiles])

    @property
    def cell_size(self) -> tuple[float, float] | None:
        """(x, y) of the finest raster, map units."""
        cell = self.key("MinCellSize")
        if not isinstance(cell, dict):
            return None
        x, y = number(cell.get("x")), number(cell.get("y"))
        return (x, y) if x and y else None

    @property
    def image_space(self) -> str:
        """MAP_SPACE, PIXEL_SPACE or IMAGE_SPACE; what is not said is a map."""
        return str(self.key("ImageSpaceUsed") or "MAP_SPACE").upper()

    @property
    def wkid(self) -> int | None:
        """Code of the spatial reference."""
        cell = self.key("MinCellSize")
        reference = cell.get("spatialReference") if isinstance(cell, dict) else None
        if not isinstance(reference, dict):
            return None
        return whole(reference.get("latestWkid")) or whole(reference.get("wkid"))

    @property
    def map_columns(self) -> tuple[str, ...]:
        """The first line of map.txt with two columns or more, else with one; empty where there is none."""
        path = self.folder / layout.MAP
        first: tuple[str, ...] = ()
        if path.is_file():
            # ArcGIS on Windows writes names in the machine's own code page; the extension is what counts.
            with path.open(encoding="utf-8-sig", errors="replace") as lines:
                for line in lines:
                    columns = layout.parse_map_line(line)
                    if len(columns) >= 2:
                        return columns
                    first = first or columns
        return first


_Row = tuple[float | None, float | None, float | None, float | None]


def _of_tiles(item: object) -> _Row:
    item = item if isinstance(item, dict) else {}
    return (
        number(item.get("Min")),
        number(item.get("Max")),
        number(item.get("Mean")),
        number(item.get("StdDev")),
    )


def _of_state(item: object) -> _Row:
    item = item if isinstance(item, dict) else {}
    count, mean, m2 = number(item.get("Num")), number(item.get("M1")), number(item.get("M2"))
    std = None if not count or m2 is None or m2 < 0 else math.sqrt(m2 / count)
    return number(item.get("Min")), number(item.get("Max")), mean, std


def _stats(names: tuple[str, ...], rows: list[_Row]) -> tuple[BandStats, ...]:
    result = []
    for name, (low, high, mean, std) in zip(names, rows, strict=True):
        if low is None or high is None or mean is None or std is None:
            return ()
        result.append(BandStats(name, low, high, mean, std))
    return tuple(result)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise TrainingDataError(f"{path} is not JSON: {error}.", "Export the training data again.") from error
    if not isinstance(content, dict):
        raise TrainingDataError(f"{path} holds no JSON object.", "Export the training data again.")
    return content


def number(value: object) -> float | None:
    """A number, also as text; None for a placeholder such as "e.g. 256"."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def whole(value: object) -> int | None:
    """A whole number, also as text or float; None for anything else."""
    found = number(value)
    return int(found) if found is not None and found == int(found) else None
