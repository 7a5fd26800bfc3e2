"""Which picture of a folder belongs to which label file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tasks.errors import TrainingDataError
from tasks.training_data import layout
from tasks.training_data.sample import Chip, Folder


def pictures(path: Path) -> list[Path]:
    """The pictures of a folder, ordered by name; side-car files are none.

    Raises:
        TrainingDataError: no such folder.
    """
    if not path.is_dir():
        raise TrainingDataError(
            f"{path.parent} has no folder {path.name}.", "Export the training data again."
        )
    return sorted(item for item in path.iterdir() if item.suffix.lower() in layout.READABLE_IMAGES)


def pictures_by_stem(path: Path) -> dict[str, Path]:
    """The same by file name without extension; none where there is no such folder."""
    return {item.stem: item for item in pictures(path)} if path.is_dir() else {}


def label_extension(folder: Folder, default: str) -> str:
    """As the second column of map.txt names it; else the format's own."""
    return (Path(folder.map_columns[1]).suffix if len(folder.map_columns) > 1 else "") or default


def paired_chips(
    folder: Folder,
    metadata_format: str,
    extension: str | None,
    *,
    images: str = layout.IMAGES,
    images2: str = layout.IMAGES2,
) -> tuple[list[Chip], int]:
    """Pictures with the label file of the same stem, and how many pictures have none.

    Args:
        extension: of the label files, where map.txt does not name it; None takes pictures without labels.
        images: the folder of the pictures.
        images2: the folder of the second pictures, which need not be there.
    """
    seconds = pictures_by_stem(folder.path / images2)
    found = pictures(folder.path / images)
    labels: Mapping[str, Path] = {}
    if extension is not None:
        labels = _files(folder.path / layout.LABELS, label_extension(folder, extension))
    chips = [
        Chip(
            stem=image.stem,
            image=image,
            label=labels.get(image.stem),
            footprint=None,
            classes=folder.classes,
            metadata_format=metadata_format,
            image2=seconds.get(image.stem),
        )
        for image in found
        if extension is None or image.stem in labels
    ]
    return chips, len(found) - len(chips)


def _files(path: Path, extension: str) -> dict[str, Path]:
    if not path.is_dir():
        return {}
    items: Iterable[Path] = path.iterdir()
    return {item.stem: item for item in items if item.suffix.lower() == extension.lower()}
