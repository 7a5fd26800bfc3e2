"""What a package finds in the chips of training data, beside what is true there.

Chips are handed to the inference function as they are, each as one tile of its own: as in the validation of a
training, nothing around them is seen. What is kept is small and holds no opinion: pairs of classes of pixels,
objects, classes of chips. :mod:`tasks.assess.comparison_chips` makes numbers of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import shapely
from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInputError
from tasks.host import HostProcess, Operation
from tasks.labels.rings import polygon_of_rings
from tasks.package.definition import ModelDefinition
from tasks.package.dlpk import Package
from tasks.training_data import (
    Chip,
    TrainingData,
    read_boxes,
    read_chip,
    read_chip2,
    read_class_mask,
    read_instances,
)
from tasks.training_data.formats import format_of, formats_holding
from tasks.training_data.images import picture_shape
from tasks.training_data.sample import Holding

Kind = Literal["objects", "pixels", "labels"]
Progress = Callable[[int, int], None]
Processor = Literal["CPU", "GPU"]

KINDS: Mapping[str, Kind] = {
    "ObjectDetection": "objects",
    "InstanceDetection": "objects",
    "ImageClassification": "pixels",
    "PanopticSegmenter": "pixels",
    "ObjectClassification": "labels",
}
"""By ``ModelType``."""
_HOLDS: Mapping[Kind, Holding] = {"objects": "boxes", "pixels": "masks", "labels": "values"}
# ``ModelName`` of packages made for two dates (docs/formats/python-raster-function.md §6).
_FOR_PAIRS = "ChangeDetector"
_OUTLINES = "InstanceDetection"
# What packages of ours say beyond Esri's keys; the sizes that their networks take are among it.
_OWN_KEY = "Chipline"
_USUAL_DIVISOR = 32
_AT_ONCE = 2  # blocks that are handed over before the first of them is asked for
_CODE = 1 << 32


class ChipOutcome(BaseModel):
    """One chip.

    Attributes:
        stem: its name.
        footprint: xmin, ymin, xmax, ymax, map units; None where it has none.
        rows, cols: its size, pixels.
        pixels: true class value, found class value, number of pixels; only where the chip holds data.
        true_objects: name of the class, and the polygon in pixels of the chip (WKB, hexadecimal).
        found_objects: name of the class, confidence, polygon.
        true_labels, found_labels: names of the classes of the chip as a whole.
    """

    model_config = ConfigDict(frozen=True)

    stem: str
    footprint: tuple[float, float, float, float] | None
    rows: int
    cols: int
    pixels: list[tuple[int, int, int]] = []
    true_objects: list[tuple[str, str]] = []
    found_objects: list[tuple[str, float, str]] = []
    true_labels: list[str] = []
    found_labels: list[str] = []


class ChipResults(BaseModel):
    """All chips, in their order.

    Attributes:
        kind: what is compared.
        classes: names by value, of the training data.
        device: that really ran.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    classes: dict[int, str]
    device: str
    chips: list[ChipOutcome]


def apply_to_chips(
    package: Package,
    data: TrainingData,
    *,
    name: str,
    processor: Processor,
    arguments: Mapping[str, str],
    progress: Progress | None = None,
) -> ChipResults:
    """Apply a package to every chip.

    Args:
        package: unpacked, and trusted here.
        data: the chips and what is true in them.
        name: of the training data, for people.
        processor: device class.
        arguments: of the function, by name.
        progress: called with (chips done, chips in all).

    Raises:
        BadInputError: the package cannot be applied to these chips, or they hold no such truth.
        HostError: the function failed.
    """
    kind = _check(package, data, name)
    sizes = [picture_shape(chip.image)[1:] for chip in data.chips]
    largest = max(rows for rows, _ in sizes), max(cols for _, cols in sizes)
    outcomes: list[ChipOutcome] = []
    with _opened(package, kind, processor, arguments, max(largest)) as host:
        bands = _bands(host.configuration.get("extractBands"), package, data, name)
        cut = _Cut.of(host, package, bands, largest)
        operation: Operation = "updatePixels" if kind == "pixels" else "vectorize"
        for chip, seen, answer in _answers(host, operation, cut, data.chips):
            outcomes.append(_OUTCOMES[kind](package, data, chip, seen, answer))
            if progress is not None:
                progress(len(outcomes), len(data.chips))
        return ChipResults(
            kind=kind,
            classes=dict(zip(data.classes.values, data.classes.names, strict=True)),
            device=host.device,
            chips=outcomes,
        )


def _check(package: Package, data: TrainingData, name: str) -> Kind:
    definition = package.definition
    kind = KINDS.get(definition.model_type or "")
    if kind is None:
        raise BadInputError(
            f"The package {package.name} is of type {definition.model_type}, which chips say nothing about.",
            f"Packages of {', '.join(KINDS)} can be applied to chips.",
        )
    holding = _HOLDS[kind]
    if holding not in format_of(data.metadata_format).holds:
        raise BadInputError(
            f"{name} holds {data.metadata_format}, in which there are no {holding} to compare the "
            f"results of {package.name} with.",
            f"Name training data in the format {' or '.join(formats_holding(holding))}.",
        )
    pairs = sum(chip.image2 is not None for chip in data.chips)
    wanted = len(data.chips) if _is_for_pairs(definition) else 0
    if pairs != wanted:
        raise BadInputError(
            f"{pairs} of the {len(data.chips)} chips of {name} have two pictures, and the package "
            f"{package.name} takes {'two' if wanted else 'one'}.",
            "Name training data of the same number of rasters as the package was trained on.",
        )
    listed = definition.classes or []
    if kind == "pixels":
        common = {item.value for item in listed} & set(data.classes.values)
    else:
        common = {item.value for item in listed if data.classes.value_of(item.name) is not None}
    if not common:
        raise BadInputError(
            f"None of the classes of {package.name} ({_named(item.name for item in listed)}) is among those "
            f"of {name} ({_named(data.classes.names)}).",
            "Name training data of the classes that the package knows.",
        )
    return kind


def _named(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _is_for_pairs(definition: ModelDefinition) -> bool:
    return definition.model_name == _FOR_PAIRS


@contextmanager
def _opened(
    package: Package, kind: Kind, processor: Processor, given: Mapping[str, str], longest: int
) -> Iterator[HostProcess]:
    """The function, with tiles of the size of the longest chip where it lets itself be told."""
    foreign = not package.made_here
    if kind == "labels":
        with HostProcess(package, processor, given, foreign=foreign) as host:
            yield host
        return
    with HostProcess(package, "CPU", given, foreign=foreign) as asked:
        known = {item.name for item in asked.parameters}
    divisor = int(package.definition.extras.get(_OWN_KEY, {}).get("SizeDivisor", _USUAL_DIVISOR))
    usual = {"padding": "0", "batch_size": "1", "tile_size": str(-(-longest // divisor) * divisor)}
    arguments = {name: value for name, value in usual.items() if name in known} | dict(given)
    with HostProcess(package, processor, arguments, foreign=foreign) as host:
        yield host


@dataclass(frozen=True)
class _Seen:
    """A chip as it is handed over: pixels (bands, rows, cols), and where it holds data (rows, cols)."""

    pixels: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Cut:
    """How chips become blocks.

    Attributes:
        bands: of a chip that are handed over, in their order; None: all.
        shape: (rows, cols) of a block without its padding; None: each chip's own.
        padding: around it, pixels.
        batch: chips per call, of functions that take several; 0 of others.
    """

    bands: list[int] | None
    shape: tuple[int, int] | None
    padding: int
    batch: int

    @classmethod
    def of(
        cls, host: HostProcess, package: Package, bands: list[int] | None, largest: tuple[int, int]
    ) -> _Cut:
        """As the function is configured.

        Args:
            largest: rows and columns of the largest chip.
        """
        configuration, definition = host.configuration, package.definition
        if host.takes_batches:
            fixed = bool(int(configuration.get("CropSizeFixed", 1)))
            return cls(bands, None, 0, max(1, int(configuration.get("batch_size") or 1)) if fixed else 1)
        padding = int(configuration.get("padding") or 0)
        rows = int(configuration.get("ty") or 0) or (definition.image_height or 0) - 2 * padding
        cols = int(configuration.get("tx") or 0) or (definition.image_width or 0) - 2 * padding
        if largest[0] > rows or largest[1] > cols:
            raise BadInputError(
                f"The chips have up to {largest[0]} x {largest[1]} pixels, and the function of "
                f"{package.name} takes {rows} x {cols} at a time.",
                f"Export the evaluation set with a tile_size of {min(rows, cols)}.",
            )
        return cls(bands, (rows, cols), padding, 0)

    def seen(self, chip: Chip) -> _Seen:
        """A chip; pixels without data are 0."""
        parts = [read_chip(chip)] + ([read_chip2(chip)] if chip.image2 is not None else [])
        pixels = np.concatenate([part[0] for part in parts])
        valid = np.ones(pixels.shape[1:], bool)
        for _, known in parts:
            if known is not None:
                valid &= known.any(axis=0)
        return _Seen(pixels if self.bands is None else pixels[self.bands], valid)

    def block(self, seen: _Seen) -> _Seen:
        """The chip at the upper left of the block's inner part, nothing around it."""
        assert self.shape is not None
        rows, cols = seen.valid.shape
        height, width = (length + 2 * self.padding for length in self.shape)
        pixels = np.zeros((len(seen.pixels), height, width), seen.pixels.dtype)
        valid = np.zeros((height, width), bool)
        place = (slice(self.padding, self.padding + rows), slice(self.padding, self.padding + cols))
        pixels[:, *place], valid[place] = seen.pixels, seen.valid
        return _Seen(pixels, valid)


def _bands(wanted: Any, package: Package, data: TrainingData, name: str) -> list[int] | None:
    """Places of the bands that the function asks for, in the chips (of two dates, in both together)."""
    if wanted is None:
        wanted = package.definition.extract_bands
    if wanted is None:
        return None
    names = [item.casefold() for item in data.band_names]
    there = len(names) * (2 if _is_for_pairs(package.definition) else 1)
    found = [names.index(str(band).casefold()) if str(band).casefold() in names else band for band in wanted]
    if not all(isinstance(band, int) and 0 <= band < there for band in found):
        raise BadInputError(
            f"The package {package.name} takes the bands {', '.join(map(str, wanted))}, and the chips of "
            f"{name} have {there}: {', '.join(data.band_names)}.",
            "Export the evaluation set with the bands that the package was trained on.",
        )
    return found


def _answers(
    host: HostProcess, operation: Operation, cut: _Cut, chips: Sequence[Chip]
) -> Iterator[tuple[Chip, _Seen, Any]]:
    """Every chip with what the function says of it, in their order."""
    flights: deque[tuple[list[tuple[Chip, _Seen]], int]] = deque()

    def receive() -> Iterator[tuple[Chip, _Seen, Any]]:
        batch, ticket = flights.popleft()
        answer = host.result(ticket)
        answers = answer[: len(batch)] if cut.batch else [answer]
        for (chip, seen), item in zip(batch, answers, strict=True):
            yield chip, seen, item

    for batch in _batches(((chip, cut.seen(chip)) for chip in chips), cut.batch):
        if len(flights) == _AT_ONCE:
            yield from receive()
        seen = [item for _, item in batch]
        if cut.batch:
            # Always full ones: what a function says of a chip must not depend on how many are left.
            seen += seen[-1:] * (cut.batch - len(seen))
            pixels, mask = np.stack([one.pixels for one in seen]), np.stack([one.valid for one in seen])
            ticket = host.submit(operation, pixels, mask.astype(np.uint8))
        else:
            block = cut.block(seen[0])
            ticket = host.submit(operation, block.pixels, block.valid.astype(np.uint8), shape=cut.shape)
        flights.append((batch, ticket))
    while flights:
        yield from receive()


def _batches(items: Iterable[tuple[Chip, _Seen]], size: int) -> Iterator[list[tuple[Chip, _Seen]]]:
    """Runs of chips of one shape, at most ``size`` (at least one) together."""
    batch: list[tuple[Chip, _Seen]] = []
    for item in items:
        if batch and (len(batch) >= max(size, 1) or item[1].pixels.shape != batch[0][1].pixels.shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _of_chip(chip: Chip, seen: _Seen, **found: Any) -> ChipOutcome:
    rows, cols = seen.valid.shape
    return ChipOutcome(stem=chip.stem, footprint=chip.footprint, rows=rows, cols=cols, **found)


def _pixels(
    _package: Package, _data: TrainingData, chip: Chip, seen: _Seen, answer: npt.NDArray[Any]
) -> ChipOutcome:
    rows, cols = seen.valid.shape
    truth = read_class_mask(chip).astype(np.int64)[seen.valid]
    found = answer[0, :rows, :cols].astype(np.int64)[seen.valid]
    codes, counts = np.unique(truth * _CODE + found, return_counts=True)
    pairs = zip((codes // _CODE).tolist(), (codes % _CODE).tolist(), counts.tolist(), strict=True)
    return _of_chip(chip, seen, pixels=list(pairs))


def _objects(
    package: Package, data: TrainingData, chip: Chip, seen: _Seen, answer: Sequence[Any]
) -> ChipOutcome:
    both = "instances" in format_of(data.metadata_format).holds
    outlines = both and package.definition.model_type == _OUTLINES
    truths = _outlines(chip) if outlines else [(box[0], shapely.box(*box[1:])) for box in read_boxes(chip)]
    found = []
    for item in answer:
        polygon = polygon_of_rings(item.rings)
        if polygon is not None:
            shape = polygon if outlines else shapely.box(*shapely.bounds(polygon))
            found.append((_known(data, item.class_name), float(item.confidence_raw), _hex(shape)))
    return _of_chip(
        chip,
        seen,
        true_objects=[(_name(data, value), _hex(shape)) for value, shape in truths],
        found_objects=found,
    )


def _outlines(chip: Chip) -> list[tuple[int, shapely.Geometry]]:
    """The objects of a chip by class value, along the edges of their pixels."""
    from rasterio.features import shapes

    found: list[tuple[int, shapely.Geometry]] = []
    for value, numbers in sorted(read_instances(chip).items()):
        parts: dict[int, list[shapely.Geometry]] = {}
        for shape, number in shapes(numbers.astype(np.int32), mask=numbers != 0):
            parts.setdefault(int(number), []).append(shapely.geometry.shape(shape))
        found += [(value, shapely.union_all(part)) for _, part in sorted(parts.items())]
    return found


def _labels(_package: Package, data: TrainingData, chip: Chip, seen: _Seen, answer: Any) -> ChipOutcome:
    return _of_chip(
        chip,
        seen,
        true_labels=[_name(data, value) for value in chip.values],
        found_labels=[_known(data, name) for name in answer.labels],
    )


def _name(data: TrainingData, value: int) -> str:
    return data.classes.names[data.classes.index(value)]


def _known(data: TrainingData, text: str) -> str:
    """A class as the training data call it, where they know it by name or by value."""
    value = data.classes.value_of(text)
    return text if value is None else _name(data, value)


def _hex(shape: shapely.Geometry) -> str:
    text: str = shapely.to_wkb(shape, hex=True)
    return text


_OUTCOMES: Mapping[Kind, Callable[..., ChipOutcome]] = {
    "pixels": _pixels,
    "objects": _objects,
    "labels": _labels,
}
