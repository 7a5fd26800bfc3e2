"""Reading training data: ours, ArcGIS's, old and new, with the tolerance that real folders ask for.

Format: docs/formats/training-data.md. Backslashes or slashes, CRLF or LF, gaps in the numbering, a missing
stats.txt, ClassValue/ClassName or Value/Name, placeholder texts where numbers belong: all are accepted. How
labels are read is the business of the format (:mod:`tasks.training_data.formats`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import NotFoundError, TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.declared import BandStats, Declared
from tasks.training_data.formats import FORMATS
from tasks.training_data.images import decode_image, decode_known, picture_shape
from tasks.training_data.sample import Chip, Folder, Format
from tasks.training_data.statistics import BandStatistics

__all__ = [
    "BandStats",
    "Chip",
    "TrainingData",
    "open_training_data",
    "read_boxes",
    "read_chip",
    "read_chip2",
    "read_chip_image",
    "read_chip_image2",
    "read_class_mask",
    "read_instances",
]

Footprint = tuple[float, float, float, float]
Box = tuple[int, float, float, float, float]


@dataclass(frozen=True)
class TrainingData:
    """A training data folder.

    Attributes:
        folder: where it is.
        metadata_format: its name, one of those in :data:`tasks.training_data.formats.FORMATS`.
        classes: the classes, background left out; none for formats without labels.
        tile_size: (rows, cols) of the chips; where chips differ in size, the size that the folder declares.
        band_names: one per band.
        cell_size: (x, y) in map units; None if unknown.
        wkid: code of the spatial reference; None if unknown.
        chips: ordered by stem; only chips that have a label file, for formats with one per chip.
        dropped: images left out because they have no label file.
        declared_stats: per band, as the side files declare; empty where they declare nothing usable.
        declared_stats2: the same of the second raster.
        instance_classes: the classes of objects, where the folder names them apart.
        image_space: MAP_SPACE, or PIXEL_SPACE or IMAGE_SPACE: pictures whose upper edge is up.
        other: the second side of a folder with two (CycleGAN); this object is the first.
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
    declared_stats2: tuple[BandStats, ...] = ()
    instance_classes: ClassSchema | None = None
    image_space: str = "MAP_SPACE"
    other: TrainingData | None = None

    @property
    def upright(self) -> bool:
        """Whether the chips are pictures with an up, not maps: turned, they show what no picture shows."""
        return self.image_space != "MAP_SPACE"

    @property
    def bands(self) -> int:
        """The number of bands."""
        return len(self.band_names)

    @property
    def format(self) -> Format:
        """The metadata format."""
        return FORMATS[self.metadata_format]

    @cached_property
    def band_stats(self) -> tuple[BandStats, ...]:
        """Per band, as the folder declares; read from the chips where it declares nothing usable."""
        if self.declared_stats:
            return self.declared_stats
        total = BandStatistics.empty(self.bands)
        for chip in self.chips:
            total = total.merge(chip_statistics(chip))
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


def open_training_data(folder: Path, metadata_format: str | None = None) -> TrainingData:
    """Open a training data folder.

    Args:
        folder: with ``images/``, or what else its format asks for.
        metadata_format: for folders without side files whose layout could be of several formats; it is
            taken in place of what the side files say.

    Raises:
        NotFoundError: no such folder.
        TrainingDataError: side files are missing or contradict each other, an unknown metadata format, no
            chip with a label.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {folder}.", "Name a folder that holds training data.")
    declared = Declared.read(folder)
    found = _format(declared, metadata_format)
    sides = found.side_folders(folder)
    if not sides:
        return _open(declared, found)
    first, second = (_open(_side(side, declared), found) for side in sides)
    return replace(first, folder=folder, other=second)


def _format(declared: Declared, wanted: str | None) -> Format:
    name = wanted or declared.metadata_format
    if name in FORMATS:
        return FORMATS[name]
    folder = declared.folder
    if name:
        raise TrainingDataError(
            f"{folder} says its metadata format is {name}.",
            f"Export the chips as one of: {', '.join(FORMATS)}.",
        )
    candidates = [item for item in FORMATS.values() if item.recognises(folder)]
    if len(candidates) == 1:
        return candidates[0]
    names = ", ".join(item.name for item in candidates)
    if declared.definition is None and declared.stats is None:
        could = f", and its layout could be of {names}" if candidates else ""
        raise TrainingDataError(
            f"{folder} holds neither {layout.DEFINITION} nor {layout.ACCUMULATED_STATS}{could}.",
            "Name the folder that Export Training Data wrote, with images/, labels/ and its side files.",
        )
    could = f" and its layout could be of {names}" if candidates else ""
    raise TrainingDataError(
        f"The side files of {folder} do not say what its metadata format is{could}.",
        f'Write "MetaDataMode" in {layout.ACCUMULATED_STATS}; it is one of: {", ".join(FORMATS)}.',
    )


def _side(folder: Path, root: Declared) -> Declared:
    own = Declared.read(folder)
    return Declared(folder, own.definition or root.definition, own.stats or root.stats)


def _open(declared: Declared, found: Format) -> TrainingData:
    path = declared.folder
    folder = Folder(
        path=path,
        classes=declared.classes,
        definition=declared.definition or {},
        stats=declared.stats or {},
        map_columns=declared.map_columns,
        instance_classes=declared.instance_classes,
    )
    if not len(folder.classes):
        folder = replace(folder, classes=found.find_classes(folder) or folder.classes)
    if found.holds and not len(folder.classes):
        raise TrainingDataError(
            f"{path} names no classes.", f"List them under Classes in {layout.DEFINITION}."
        )
    chips, dropped = found.chips(folder)
    if not chips:
        raise TrainingDataError(
            f"{path} holds no chip that has a label ({dropped} images without one).",
            "Check that images/ and labels/ hold files of the same names.",
        )
    bands, rows, cols = picture_shape(chips[0].image)
    if declared.bands not in (None, bands):
        raise TrainingDataError(
            f"{layout.ACCUMULATED_STATS} of {path} says {declared.bands} bands, "
            f"but the chip {chips[0].image.name} has {bands}.",
            "Export the training data again, in one run.",
        )
    names = declared.band_names(bands)
    tile_size = None if declared.tile_size is not None else (rows, cols)
    chips = [replace(chip, footprint=_footprint(chip.image, tile_size)) for chip in chips]
    return TrainingData(
        folder=path,
        metadata_format=found.name,
        classes=folder.classes,
        tile_size=declared.tile_size or (rows, cols),
        band_names=names,
        cell_size=declared.cell_size or _cell_size_of(chips[0], (rows, cols)),
        wkid=declared.wkid,
        chips=chips,
        dropped=dropped,
        declared_stats=declared.band_stats(names),
        declared_stats2=declared.band_stats2(),
        instance_classes=folder.instance_classes,
        image_space=declared.image_space,
    )


def read_chip(chip: Chip) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """The chip's pixels, 0 where there is no data, and where there is some; None: everywhere.

    Both # (bands, rows, cols); what counts as no data: :func:`tasks.training_data.images.decode_known`.
    """
    return decode_known(chip.image)


def read_chip2(chip: Chip) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """The same of the chip's second picture.

    Raises:
        TrainingDataError: there is none.
    """
    return decode_known(_second(chip))


def chip_statistics(chip: Chip) -> BandStatistics:
    """Of the pixels in which every band holds data."""
    values, known = read_chip(chip)
    return BandStatistics.of(values, None if known is None else np.logical_and.reduce(known))


def read_chip_image(chip: Chip) -> npt.NDArray[Any]:
    """The chip's pixels  # (bands, rows, cols), its own dtype."""
    return decode_image(chip.image)


def read_chip_image2(chip: Chip) -> npt.NDArray[Any]:
    """The pixels of the chip's second picture  # (bands, rows, cols), its own dtype.

    Raises:
        TrainingDataError: there is none.
    """
    return decode_image(_second(chip))


def read_class_mask(chip: Chip) -> npt.NDArray[np.integer[Any]]:
    """Class values of a chip's pixels  # (rows, cols), 0 = no label.

    Raises:
        TrainingDataError: the format has no masks; no label, unreadable, or a value that is not among the
            classes.
    """
    mask = FORMATS[chip.metadata_format].mask(chip)
    unknown = np.setdiff1d(np.unique(mask), [0, *chip.classes.values])
    if len(unknown):
        raise TrainingDataError(
            f"The label {chip.label} holds the values {unknown.tolist()}, which are not among the classes "
            f"{list(chip.classes.values)}.",
            f"List them under Classes in {layout.DEFINITION}, or export again.",
        )
    return mask


def read_boxes(chip: Chip) -> list[Box]:
    """The boxes of a chip: (class value, xmin, ymin, xmax, ymax), pixels; max edges exclusive.

    Class names in place of class values are understood too. Empty boxes (the dummy box that some writers
    leave in a chip without objects) are left out.

    Raises:
        TrainingDataError: the format has no boxes; no label, unreadable, or an object of a class that is not
            among the classes.
    """
    return list(FORMATS[chip.metadata_format].boxes(chip))


def read_instances(chip: Chip) -> dict[int, npt.NDArray[Any]]:
    """By class value, the number of the object each pixel belongs to  # (rows, cols), 0 = none.

    Raises:
        TrainingDataError: the format has no instances; a label cannot be read.
    """
    return FORMATS[chip.metadata_format].instances(chip)


def _second(chip: Chip) -> Path:
    if chip.image2 is None:
        raise TrainingDataError(
            f"The chip {chip.image} has no second picture.",
            "Export the training data with additional_input_raster.",
        )
    return chip.image2


def _footprint(image: Path, tile_size: tuple[int, int] | None) -> Footprint | None:
    for extension in {layout.WORLD_EXTENSIONS.get(image.suffix.lower(), ".wld"), ".wld"}:
        world = image.with_suffix(extension)
        if world.is_file():
            try:
                a, b, c, d, e, f = layout.parse_world_file(world.read_text(encoding="ascii"))
            except ValueError as error:
                raise TrainingDataError(
                    f"The world file {world} cannot be read: {error}.", "Export the training data again."
                ) from error
            rows, cols = tile_size or picture_shape(image)[1:]
            xs, ys = (
                (0.0, a * cols, b * rows, a * cols + b * rows),
                (0.0, d * cols, e * rows, d * cols + e * rows),
            )
            return c + min(xs), f + min(ys), c + max(xs), f + max(ys)
    return _own_footprint(image)


def _own_footprint(image: Path) -> Footprint | None:
    if image.suffix.lower() not in {".tif", ".tiff", ".mrf"}:
        return None
    import rasterio

    with rasterio.open(image) as dataset:
        if dataset.transform.is_identity:
            return None
        corners = [
            dataset.transform @ corner
            for corner in ((0, 0), (dataset.width, 0), (0, dataset.height), (dataset.width, dataset.height))
        ]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _cell_size_of(chip: Chip, tile_size: tuple[int, int]) -> tuple[float, float] | None:
    if chip.footprint is None:
        return None
    xmin, ymin, xmax, ymax = chip.footprint
    return (xmax - xmin) / tile_size[1], (ymax - ymin) / tile_size[0]
