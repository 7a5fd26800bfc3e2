"""Export_Tiles: pictures alone, of one raster or of two; for super-resolution and image translation.

Format: docs/formats/training-data.md, "Export_Tiles".
"""

from __future__ import annotations

from pathlib import Path

from tasks.training_data import layout
from tasks.training_data.images import encode_picture
from tasks.training_data.sample import ChipFile, ChipRecord, Context, Format, Sample


class ExportTiles(Format):
    """``images/`` and, of a second raster, ``images2/``; no labels, and nothing is counted."""

    name = "Export_Tiles"
    needs_labels = False

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """The line in map.txt has the second picture in its second column."""
        stem = layout.chip_stem(sample.number)
        files, path = encode_picture(
            sample.image, stem, layout.IMAGES, sample.transform, context, sample.known
        )
        paths = [path]
        if sample.image2 is not None:
            more, path2 = encode_picture(
                sample.image2, stem, layout.IMAGES2, sample.transform, context, sample.known2
            )
            files, paths = files + more, [path, path2]
        return files, ChipRecord(number=sample.number, paths=paths, bands=[])

    def recognises(self, path: Path) -> bool:
        """Two folders of pictures and no labels."""
        both = (path / layout.IMAGES).is_dir() and (path / layout.IMAGES2).is_dir()
        return both and not (path / layout.LABELS).exists()


FORMAT = ExportTiles()
