"""Reading training data: ours, ArcGIS's, old and new, with the tolerance that real folders ask for.

Format: docs/formats/training-data.md. Backslashes or slashes, CRLF or LF, gaps in the numbering, a missing
stats.txt, ClassValue/ClassName or Value/Name, placeholder texts where numbers belong: all are accepted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import NotFoundError, TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.statistics import BandStatistics

Footprint = tuple[float, float, float, float]
_NUMBERED_BANDS = "Band_{}"


@dataclass(frozen=True)
class BandStats:
    """One band over all chips, in pixel values."""

    name: str
    minimum: float
    maximum: float
    mean: float
    std: float


@dataclass(frozen=True)
class Chip:
    """One training sample.

    Attributes:
        stem: file name without extension.
        image: the picture.
        label: the label file.
        footprint: (xmin, ymin, xmax, ymax) in map units; None where the chip has no georeference.
        classes: the classes its labels name.
    """

    stem: str
    image: Path
    label: Path | None
    footprint: Footprint | None
    classes: ClassSchema = field(repr=False)


@dataclass(frozen=True)
class TrainingData:
    """A training data folder.

    Attributes:
        folder: where it is.
        metadata_format: "Classified_Tiles" or "PASCAL_VOC_rectangles".
        classes: the classes, background left out.
        tile_size: (rows, cols) of the chips.
        band_names: one per band.
        cell_size: (x, y) in map units; None if unknown.
        wkid: code of the spatial reference; None if unknown.
        chips: ordered by stem; only chips that have a label file.
        dropped: images left out because they have no label file.
    """

    folder: Path
    metadata_format: str
    classes: ClassSchema
    tile_size: tuple[int, int]
    band_names: tuple[str, ...]
    cell_size: tuple[float, float] | None
    wkid: int | None
    chips: list[Chip]
    dropped: int
    declared_stats: tuple[BandStats, ...]

    @property
    def bands(self) -> int:
        """The number of bands."""
        return len(self.band_names)

    @cached_property
    def band_stats(self) -> tuple[BandStats, ...]:
        """Per band, as the folder declares; read from the chips where it declares nothing usable."""
        if self.declared_stats:
            return self.declared_stats
        total = BandStatistics.empty(self.bands)
        for chip in self.chips:
            total = total.merge(BandStatistics.of(read_chip_image(chip)))
        return tuple(
            BandStats(
                name,
                float(total.minimum[i]),
                float(total.maximum[i]),
                float(total.mean[i]),
                float(total.std[i]),
            )
            for i, name in enumerate(self.band_names)
        )


def open_training_data(folder: Path) -> TrainingData:
    """Open a training data folder.

    Raises:
        NotFoundError: no such folder.
        TrainingDataError: side files are missing or contradict each other, an unknown metadata format, no
            chip with a label.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {folder}.", "Name a folder that holds training data.")
    definition = _json(folder / layout.DEFINITION)
    stats = _json(folder / layout.ACCUMULATED_STATS)
    if definition is None and stats is None:
        raise TrainingDataError(
            f"{folder} holds neither {layout.DEFINITION} nor {layout.ACCUMULATED_STATS}.",
            "Name the folder that Export Training Data wrote, with images/, labels/ and its side files.",
        )
    definition, stats = definition or {}, stats or {}
    metadata_format = str(stats.get("MetaDataMode") or definition.get("MetaDataMode") or "")
    if metadata_format not in layout.METADATA_FORMATS:
        raise TrainingDataError(
            f"{folder} says its metadata format is {metadata_format or '(nothing)'}.",
            f"Export the chips as one of: {', '.join(layout.METADATA_FORMATS)}.",
        )
    classes = _classes(folder, definition, stats)
    pairs, dropped = _pairs(folder, _label_extension(folder, metadata_format))
    if not pairs:
        raise TrainingDataError(
            f"{folder} holds no chip that has a label ({dropped} images without one).",
            "Check that images/ and labels/ hold files of the same names.",
        )
    shape = _shape(pairs[0][0])
    bands, tile_size = shape[0], (shape[1], shape[2])
    declared_bands = _whole(stats.get("NumBands"))
    if declared_bands is not None and declared_bands != bands:
        raise TrainingDataError(
            f"{layout.ACCUMULATED_STATS} of {folder} says {declared_bands} bands, "
            f"but the chip {pairs[0][0].name} has {bands}.",
            "Export the training data again, in one run.",
        )
    names = _band_names(definition, bands)
    chips = [Chip(image.stem, image, label, _footprint(image, tile_size), classes) for image, label in pairs]
    cell_size, wkid = _cell_size(definition)
    return TrainingData(
        folder=folder,
        metadata_format=metadata_format,
        classes=classes,
        tile_size=tile_size,
        band_names=names,
        cell_size=cell_size or _cell_size_of(chips[0], tile_size),
        wkid=wkid,
        chips=chips,
        dropped=dropped,
        declared_stats=_declared_stats(definition, stats, names),
    )


def read_chip_image(chip: Chip) -> npt.NDArray[Any]:
    """The chip's pixels  # (bands, rows, cols), its own dtype."""
    from tasks.training_data.images import decode_image

    return decode_image(chip.image)


def read_class_mask(chip: Chip) -> npt.NDArray[np.integer[Any]]:
    """Class values of a classified tile  # (rows, cols), 0 = no label.

    Raises:
        TrainingDataError: no label, unreadable, or a value that is not among the classes.
    """
    from tasks.training_data.classified_tiles import decode_label

    path = _label(chip)
    mask = decode_label(path)
    unknown = np.setdiff1d(np.unique(mask), [0, *chip.classes.values])
    if len(unknown):
        raise TrainingDataError(
            f"The label {path} holds the values {unknown.tolist()}, which are not among the classes "
            f"{list(chip.classes.values)}.",
            f"List them under Classes in {layout.DEFINITION}, or export again.",
        )
    return mask


def read_boxes(chip: Chip) -> list[tuple[int, float, float, float, float]]:
    """The boxes of a chip: (class value, xmin, ymin, xmax, ymax), pixels; max edges exclusive.

    Class names in place of class values are understood too. Empty boxes (the dummy box that some writers
    leave in a chip without objects) are left out.

    Raises:
        TrainingDataError: no label, unreadable, or an object of a class that is not among the classes.
    """
    from tasks.training_data.pascal_voc import decode_annotation

    path = _label(chip)
    boxes = []
    for name, xmin, ymin, xmax, ymax in decode_annotation(path):
        value = chip.classes.value_of(name)
        if xmax <= xmin or ymax <= ymin:
            continue
        if value is None:
            raise TrainingDataError(
                f"An object in {path} has the class {name!r}, which is not among the classes "
                f"{dict(zip(chip.classes.values, chip.classes.names, strict=True))}.",
                f"List it under Classes in {layout.DEFINITION}, or export again.",
            )
        boxes.append((value, xmin, ymin, xmax, ymax))
    return boxes


def _label(chip: Chip) -> Path:
    if chip.label is None:
        raise TrainingDataError(f"The chip {chip.image} has no label.", "Export the training data again.")
    return chip.label


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


def _classes(folder: Path, definition: Mapping[str, Any], stats: Mapping[str, Any]) -> ClassSchema:
    records = definition.get("Classes") or stats.get("Classes") or []
    try:
        classes = ClassSchema.from_records(records)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingDataError(
            f"The classes of {folder} cannot be understood: {error}.",
            f'Write them in {layout.DEFINITION} as {{"Value": 1, "Name": "Tree", "Color": [0, 128, 0]}}.',
        ) from error
    if not len(classes):
        raise TrainingDataError(
            f"{folder} names no classes.", f"List them under Classes in {layout.DEFINITION}."
        )
    return classes


def _label_extension(folder: Path, metadata_format: str) -> str:
    """From the first line of map.txt that names a label; else the format's own."""
    path = folder / layout.MAP
    if path.is_file():
        with path.open(encoding="utf-8-sig") as lines:
            for line in lines:
                columns = layout.parse_map_line(line)
                if len(columns) >= 2:
                    return Path(columns[1]).suffix
    return layout.LABEL_EXTENSIONS[metadata_format]


def _pairs(folder: Path, label_extension: str) -> tuple[list[tuple[Path, Path]], int]:
    images, labels = folder / layout.IMAGES, folder / layout.LABELS
    if not images.is_dir():
        raise TrainingDataError(f"{folder} has no folder {layout.IMAGES}.", "Export the training data again.")
    files = {path.name for path in labels.iterdir()} if labels.is_dir() else set()
    pairs, dropped = [], 0
    for image in sorted(images.iterdir()):
        if image.suffix.lower() not in layout.READABLE_IMAGES:
            continue
        name = image.stem + label_extension
        if name in files:
            pairs.append((image, labels / name))
        else:
            dropped += 1
    return pairs, dropped


def _shape(image: Path) -> tuple[int, int, int]:
    from tasks.training_data.images import decode_image

    bands, rows, cols = decode_image(image).shape
    return bands, rows, cols


def _footprint(image: Path, tile_size: tuple[int, int]) -> Footprint | None:
    for extension in {layout.WORLD_EXTENSIONS.get(image.suffix.lower(), ".wld"), ".wld"}:
        world = image.with_suffix(extension)
        if world.is_file():
            try:
                a, b, c, d, e, f = layout.parse_world_file(world.read_text(encoding="ascii"))
            except ValueError as error:
                raise TrainingDataError(
                    f"The world file {world} cannot be read: {error}.", "Export the training data again."
                ) from error
            rows, cols = tile_size
            xs, ys = (c, c + a * cols + b * rows), (f, f + d * cols + e * rows)
            return min(xs), min(ys), max(xs), max(ys)
    return _own_footprint(image)


def _own_footprint(image: Path) -> Footprint | None:
    if image.suffix.lower() not in {".tif", ".tiff", ".mrf"}:
        return None
    import rasterio

    with rasterio.open(image) as dataset:
        if dataset.transform.is_identity:
            return None
        xmin, ymin, xmax, ymax = dataset.bounds
        return min(xmin, xmax), min(ymin, ymax), max(xmin, xmax), max(ymin, ymax)


def _band_names(definition: Mapping[str, Any], bands: int) -> tuple[str, ...]:
    properties = definition.get("InputRastersProps")
    names = properties.get("BandNames") if isinstance(properties, dict) else None
    if isinstance(names, list) and len(names) == bands:
        return tuple(str(name) for name in names)
    if bands == 3:
        return ("Red", "Green", "Blue")
    return tuple(_NUMBERED_BANDS.format(i + 1) for i in range(bands))


def _declared_stats(
    definition: Mapping[str, Any], stats: Mapping[str, Any], names: tuple[str, ...]
) -> tuple[BandStats, ...]:
    declared = definition.get("AllTilesStats")
    if isinstance(declared, list) and len(declared) == len(names):
        rows = [
            tuple(_number(item.get(key)) for key in ("Min", "Max", "Mean", "StdDev")) for item in declared
        ]
    else:
        state = stats.get("BandStatsState")
        if not isinstance(state, list) or len(state) != len(names):
            return ()
        rows = []
        for item in state:
            count, mean, m2 = (_number(item.get(key)) for key in ("Num", "M1", "M2"))
            std = None if not count or m2 is None else (m2 / count) ** 0.5
            rows.append((_number(item.get("Min")), _number(item.get("Max")), mean, std))
    result = []
    for name, (low, high, mean, std) in zip(names, rows, strict=True):
        if low is None or high is None or mean is None or std is None:
            return ()
        result.append(BandStats(name, low, high, mean, std))
    return tuple(result)


def _cell_size(definition: Mapping[str, Any]) -> tuple[tuple[float, float] | None, int | None]:
    cell = definition.get("MinCellSize")
    if not isinstance(cell, dict):
        return None, None
    x, y = _number(cell.get("x")), _number(cell.get("y"))
    reference = cell.get("spatialReference")
    wkid = None
    if isinstance(reference, dict):
        wkid = _whole(reference.get("latestWkid")) or _whole(reference.get("wkid"))
    return ((x, y) if x and y else None), wkid


def _cell_size_of(chip: Chip, tile_size: tuple[int, int]) -> tuple[float, float] | None:
    if chip.footprint is None:
        return None
    xmin, ymin, xmax, ymax = chip.footprint
    return (xmax - xmin) / tile_size[1], (ymax - ymin) / tile_size[0]


def _number(value: object) -> float | None:
    """A number, also as text; None for a placeholder such as "e.g. 256"."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _whole(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None
