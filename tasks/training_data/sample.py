"""One chip on its way into a folder, and what a metadata format has to say about it.

A format is one module with one subclass of :class:`Format`, which both writes and reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema

if TYPE_CHECKING:
    import numpy.typing as npt

    from tasks.labels.pixels import LabelsInWindow

Transform = tuple[float, float, float, float, float, float]
Need = Literal["mask", "objects", "instances", "value", "second raster", "instance data"]
Holding = Literal["masks", "boxes", "instances", "values"]


@dataclass(frozen=True)
class Context:
    """What all chips of an export share.

    Attributes:
        chip_format: "TIFF", "PNG", "JPEG" or "MRF".
        crs_wkt: of the chips; None in pixel space.
        classes: the classes of the labels.
        instance_classes: classes of the instance data (Panoptic_Segmentation only).
    """

    chip_format: str
    crs_wkt: str | None
    classes: ClassSchema
    instance_classes: ClassSchema | None = None


@dataclass(frozen=True)
class Sample:
    """A chip in memory; what its format does not need is None.

    Attributes:
        number: names the files.
        image: # (bands, rows, cols)
        valid: where the picture holds data  # (rows, cols), bool
        transform: (a, b, c, d, e, f), chip pixel to map; turned chips have b and d.
        mask: class values, 0 = none  # (rows, cols), unsigned integer
        objects: the labelled objects inside, in chip pixels.
        instances: by class value, the number of the object each pixel belongs to, from 1 without gaps; 0 =
            none  # (rows, cols), unsigned integer
        value: class value of the one object the chip was cut around.
        image2: the second raster's pixels  # (bands, rows, cols)
        valid2: # (rows, cols), bool
        known: where the imagery holds data, also where it was blackened; None: everywhere. The picture gets a
            mask that says so.  # (rows, cols), bool
        known2: the same of the second raster.
    """

    number: int
    image: npt.NDArray[Any]
    valid: npt.NDArray[Any]
    transform: Transform
    mask: npt.NDArray[Any] | None = None
    objects: LabelsInWindow | None = None
    instances: Mapping[int, npt.NDArray[Any]] | None = None
    value: int | None = None
    image2: npt.NDArray[Any] | None = None
    valid2: npt.NDArray[Any] | None = None
    known: npt.NDArray[Any] | None = None
    known2: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class ChipFile:
    """One file to be written: its path in the folder, with forward slashes, and its bytes."""

    path: str
    data: bytes


class ChipRecord(BaseModel):
    """What a chip adds to the side files.

    Attributes:
        number: its number.
        paths: the columns of its line in map.txt: the picture, then its label files.
        bands: per band (count, mean, m2, min, max) over valid pixels.
        bands2: the same of the second raster's picture.
        pixels: pixels by class value, for formats that count pixels.
        areas: squared map units of each feature, by class value, for formats that count features.
        extra: what the format's own side files need.
        corners: map x, y of the chip's four corners, from the upper left clockwise.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    paths: list[str]
    bands: list[list[float | int | None]]
    bands2: list[list[float | int | None]] = []
    pixels: dict[int, int] = {}
    areas: dict[int, list[float]] = {}
    extra: dict[str, Any] | None = None
    corners: list[float] = []


class SideWriter:
    """Gathers the records of an export, in the order of their numbers, into files of a format's own.

    The base class writes none.
    """

    def add(self, record: ChipRecord) -> None:
        """Take the next chip."""

    def close(self) -> dict[str, Path]:
        """Finish; the files by their path in the training data folder."""
        return {}


@dataclass(frozen=True)
class Chip:
    """One training sample on disk.

    Attributes:
        stem: file name without extension.
        image: the picture.
        label: the label file; None where the format has none (the folder's name is the class, say).
        footprint: (xmin, ymin, xmax, ymax) in map units; None where the chip has no georeference. The reader
            fills it in: a format leaves it None.
        classes: the classes its labels name.
        metadata_format: the format it was read from.
        labels: all label files, by what they are for: the class value of an instance mask, say.
        image2: the second picture, where the format has one.
        values: class values of the chip as a whole (Labeled_Tiles, MultiLabeled_Tiles, Imagenet).
    """

    stem: str
    image: Path
    label: Path | None
    footprint: tuple[float, float, float, float] | None
    classes: ClassSchema = field(repr=False)
    metadata_format: str = ""
    labels: Mapping[int, Path] = field(default_factory=dict)
    image2: Path | None = None
    values: tuple[int, ...] = ()

    @property
    def label_path(self) -> Path:
        """The label file.

        Raises:
            TrainingDataError: the chip has none.
        """
        if self.label is None:
            raise TrainingDataError(f"The chip {self.image} has no label.", "Export the training data again.")
        return self.label


Boxes = Sequence[tuple[int, float, float, float, float]]


@dataclass(frozen=True)
class Folder:
    """What the reader knows of a training data folder before it looks at chips.

    Attributes:
        path: where it is.
        classes: the classes; empty where the side files name none and the format can tell them itself.
        definition: the template ``.emd`` as read; empty where there is none.
        stats: esri_accumulated_stats.json as read; empty where there is none.
        map_columns: the columns of the first line of map.txt that names a label, else of the first that names
            a picture, with forward slashes.
        instance_classes: classes of the objects (Panoptic_Segmentation only).
    """

    path: Path
    classes: ClassSchema
    definition: Mapping[str, Any]
    stats: Mapping[str, Any]
    map_columns: tuple[str, ...]
    instance_classes: ClassSchema | None = None


class Format:
    """A metadata format: how a chip's labels are written and read.

    A module's one instance is called ``FORMAT``; :mod:`tasks.training_data.formats` finds it there.

    Attributes:
        name: ArcGIS's name of the format, or ours for formats that it has none for.
        label_extension: of the label files; None where there are none.
        holds: what the labels can be read as: "masks" of class values, "boxes", "instances", or class
            "values" of the chip as a whole. Training asks for it.
        counts: what the statistics count: "pixels" of each class, "features", or nothing.
        needs: which parts of a :class:`Sample` must be there.
        chips_at: chips lie at every "position" of a regular grid, or one around each labelled "feature".
        needs_labels: whether the export needs class data at all.
        sides: folders that are each a whole export of their own, by raster; one nameless side otherwise.
        folder_per_class: folders are named after the classes, so that class names must be folder names (see
            :func:`tasks.training_data.layout.folder_classes`).
        has_map: whether there is a map.txt.
    """

    name: str
    label_extension: str | None = None
    holds: frozenset[Holding] = frozenset()
    counts: Literal["pixels", "features", "nothing"] = "nothing"
    needs: frozenset[Need] = frozenset()
    chips_at: Literal["position", "feature"] = "position"
    needs_labels: bool = True
    sides: tuple[str, ...] = ("",)
    folder_per_class: bool = False
    has_map: bool = True

    def all_classes(self, context: Context) -> ClassSchema:
        """The classes as the side files and the labels name them, for statistics too.

        Those of the labels, under names that are folder names where the format has a folder per class.
        """
        if not self.folder_per_class:
            return context.classes
        from tasks.training_data.layout import folder_classes

        return folder_classes(context.classes)

    def check(self, context: Context) -> None:
        """Refuse what the format cannot hold, before any chip is cut.

        Raises:
            BadInputError: with the remedy.
        """
        self.all_classes(context)

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """All files of a chip, and its record. ``bands`` and ``corners`` of the record are the caller's."""
        raise NotImplementedError

    def side_writer(self, context: Context, scratch: Path) -> SideWriter:  # noqa: ARG002
        """Gathers what the format's own side files need; ``scratch`` is a folder for temporary files."""
        return SideWriter()

    def recognises(self, path: Path) -> bool:  # noqa: ARG002
        """Whether a folder without side files can be of this format, by its layout."""
        return False

    def side_folders(self, path: Path) -> tuple[Path, ...]:  # noqa: ARG002
        """The folders of a format with two sides; none where they are not there."""
        return ()

    def find_classes(self, folder: Folder) -> ClassSchema | None:  # noqa: ARG002
        """The classes as the labels themselves name them; None where they do not."""
        return None

    def chips(self, folder: Folder) -> tuple[list[Chip], int]:
        """The chips of a folder, ordered by stem, and how many pictures were dropped for lack of a label.

        Unless a format says otherwise these are the pictures in images/ that have a file of the same stem in
        labels/; all pictures where the format has no label files.
        """
        from tasks.training_data.pairing import paired_chips

        return paired_chips(folder, self.name, self.label_extension)

    def boxes(self, chip: Chip) -> Boxes:
        """Boxes (class value, xmin, ymin, xmax, ymax) in pixels; max edges exclusive."""
        if "instances" not in self.holds:
            raise self._lacks("boxes")
        from tasks.training_data.masks import boxes_of_instances

        return boxes_of_instances(self.instances(chip))

    def mask(self, chip: Chip) -> npt.NDArray[Any]:  # noqa: ARG002
        """Class values, 0 = none  # (rows, cols), integers."""
        raise self._lacks("class masks")

    def instances(self, chip: Chip) -> dict[int, npt.NDArray[Any]]:  # noqa: ARG002
        """By class value, the number of the object each pixel belongs to  # (rows, cols), 0 = none."""
        raise self._lacks("instance masks")

    def _lacks(self, what: str) -> TrainingDataError:
        return TrainingDataError(
            f"{self.name} holds no {what}.", "Export the training data in a metadata format that does."
        )
