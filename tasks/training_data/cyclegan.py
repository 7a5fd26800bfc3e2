"""CycleGAN: two exports of pictures that need not show the same places, in the folders A and B.

The export writes each side as an export of its own, with its side files; the format knows one side.
Format: docs/formats/training-data.md, "CycleGAN".
"""

from __future__ import annotations

from pathlib import Path

from tasks.training_data import layout
from tasks.training_data.images import encode_picture
from tasks.training_data.pairing import paired_chips
from tasks.training_data.sample import Chip, ChipFile, ChipRecord, Context, Folder, Format, Sample

# Older folders hold the sides' pictures here, without folders of their own.
_OLD = (("Images", "train_a"), ("Images", "train_b"))


class CycleGan(Format):
    """Pictures of one side; no labels, and nothing is counted."""

    name = "CycleGAN"
    needs_labels = False
    sides = ("A", "B")

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """The picture, in ``images/`` of its side."""
        stem = layout.chip_stem(sample.number)
        files, path = encode_picture(
            sample.image, stem, layout.IMAGES, sample.transform, context, sample.known
        )
        return files, ChipRecord(number=sample.number, paths=[path], bands=[])

    def side_folders(self, path: Path) -> tuple[Path, ...]:
        """The folders A and B, or ``Images/train_a`` and ``Images/train_b``; none if they are not there."""
        new = tuple(path / side for side in self.sides)
        if all((side / layout.IMAGES).is_dir() for side in new):
            return new
        old = tuple(_whatever_case(path, *parts) for parts in _OLD)
        found = tuple(side for side in old if side is not None)
        return found if len(found) == len(old) else ()

    def recognises(self, path: Path) -> bool:
        """Both sides are there."""
        return bool(self.side_folders(path))

    def chips(self, folder: Folder) -> tuple[list[Chip], int]:
        """The pictures of a side."""
        flat = not (folder.path / layout.IMAGES).is_dir()
        return paired_chips(folder, self.name, None, images="." if flat else layout.IMAGES)


def _whatever_case(path: Path, *parts: str) -> Path | None:
    for part in parts:
        if not path.is_dir():
            return None
        found = sorted(item for item in path.iterdir() if item.name.lower() == part.lower() and item.is_dir())
        if not found:
            return None
        path = found[0]
    return path


FORMAT = CycleGan()
