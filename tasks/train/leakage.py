"""Whether training chips show what validation chips show: by their footprints, and by their pixels.

Footprints of foreign training data may be missing or wrong, and a copy may be turned: pixels are compared as
well, in all eight positions of a chip. Where footprints are missing, parts of chips are compared, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from tasks.errors import TrainingDataError
from tasks.train.augmentation import dihedral
from tasks.train.overlaps import Overlaps
from tasks.train.splits import Footprint, Split, overlapping
from tasks.training_data import Chip, read_chip_image

# Comparing the pixels of more chips takes longer than it is worth; footprints are compared for all.
COMPARED_CHIPS = 20_000


@dataclass(frozen=True)
class Leakage:
    """Training chips that share ground or pixels with validation chips, by their index.

    Attributes:
        overlapping: their footprints share an area.
        copies: they show the same pixels, maybe turned or mirrored; or, where a chip has no footprint, partly
            the same.
        compared: whether pixels were compared.
    """

    overlapping: tuple[int, ...]
    copies: tuple[int, ...]
    compared: bool

    @property
    def chips(self) -> tuple[int, ...]:
        """All of them, ascending."""
        return tuple(sorted({*self.overlapping, *self.copies}))


def find_leakage(chips: Sequence[Chip], footprints: Sequence[Footprint | None], split: Split) -> Leakage:
    """Compare every training chip with every validation chip.

    Args:
        chips: all chips.
        footprints: of each, in one coordinate system; None where it is not known.
        split: indices into ``chips``.
    """
    placed = [index for index, footprint in enumerate(footprints) if footprint is not None]
    known = [footprint for footprint in footprints if footprint is not None]
    validation = set(split.validation)
    sharing: set[int] = set()
    if known:
        hit = overlapping(known, [position for position, index in enumerate(placed) if index in validation])
        sharing = {index for index, found in zip(placed, hit, strict=True) if found}
    compared = len(split.train) + len(split.validation) <= COMPARED_CHIPS
    copies: tuple[int, ...] = ()
    if compared:
        placeless = len(placed) < len(footprints)
        copies = _copies(chips, split, in_part=placeless)
    return Leakage(tuple(index for index in split.train if index in sharing), copies, compared)


def refuse_leakage(leakage: Leakage, train: int) -> None:
    """Refuse a given split that leaks.

    Args:
        train: how many training chips there are.

    Raises:
        TrainingDataError: with how many training chips leak, and how.
    """
    if leakage.chips:
        raise TrainingDataError(
            f"{len(leakage.chips)} of {train} training chips leak into the validation chips: "
            f"{len(leakage.overlapping)} share ground with them, {len(leakage.copies)} show the same pixels. "
            "Accuracy on them would be worth nothing.",
            "Give validation_folder chips of other ground, or leave it empty: then compact areas are kept "
            "aside.",
        )


def without(split: Split, leakage: Leakage) -> Split:
    """The split without the training chips that leak."""
    leaking = set(leakage.chips)
    train = tuple(index for index in split.train if index not in leaking)
    if not train:
        raise TrainingDataError(
            "Every training chip shows what a validation chip shows.",
            "Export chips of more ground, or remove copies from the training data.",
        )
    return replace(split, train=train, dropped=tuple(sorted({*split.dropped, *leaking})))


def _copies(chips: Sequence[Chip], split: Split, *, in_part: bool) -> tuple[int, ...]:
    """Training chips that show what a validation chip shows, or, on request, a part of it."""
    overlaps = Overlaps(lambda index: read_chip_image(chips[index]))
    seen: set[bytes | None] = set()
    for index in split.validation:
        pixels = read_chip_image(chips[index])
        seen.add(_fingerprint(pixels))
        if in_part:
            overlaps.add(index, pixels)
    seen.discard(None)
    copies = []
    for index in split.train:
        pixels = read_chip_image(chips[index])
        if _fingerprint(pixels) in seen or (in_part and overlaps.shares(pixels)):
            copies.append(index)
    return tuple(copies)


def _fingerprint(pixels: npt.NDArray[Any]) -> bytes | None:  # (bands, rows, cols)
    """The same for a picture and its turned and mirrored copies; None for one without content."""
    if pixels.min() == pixels.max():
        return None
    digests = (hashlib.blake2b(dihedral(pixels, code).tobytes(), digest_size=16) for code in range(8))
    return min(digest.digest() for digest in digests)
