"""Instance masks in a folder per class: ``<folder>/<ClassName>/NNN.tif``, pixel = number of the object.

RCNN_Masks and Panoptic_Segmentation hold their objects so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.masks import decode_labels, label_files, numbered, within
from tasks.training_data.sample import Chip, ChipFile, Context, Sample

_RASTERS = (".tif", ".tiff", ".png", ".mrf")


def encode_instances(
    sample: Sample, context: Context, classes: ClassSchema, folder: str
) -> tuple[list[ChipFile], list[str], dict[int, npt.NDArray[Any]]]:
    """The masks of a chip's objects: files, the masks' paths, and the masks as written, by class value.

    A class without a pixel in the chip has no file. Objects are numbered without gaps, also where some have
    no pixel with a picture.

    Args:
        classes: whose names are folder names (see :func:`tasks.training_data.layout.folder_classes`).
        folder: that holds the folders of the classes.

    Raises:
        ValueError: the sample has no instances.
    """
    if sample.instances is None:
        raise ValueError(f"the sample {sample.number} has no instances")
    stem = layout.chip_stem(sample.number)
    files: list[ChipFile] = []
    paths: list[str] = []
    masks: dict[int, npt.NDArray[Any]] = {}
    for item in classes:
        given = sample.instances.get(item.value)
        if given is None:
            continue
        mask = numbered(within(given, sample.valid))
        if not mask.any():
            continue
        parts, path = label_files(mask, stem, f"{folder}/{item.name}", sample.transform, context)
        files += parts
        paths.append(path)
        masks[item.value] = mask
    return files, paths, masks


def instance_files(path: Path, classes: ClassSchema) -> dict[str, dict[int, Path]]:
    """By stem of the chip, the mask files by class value; a class without a folder has none.

    Folders may bear the class name as it is or as a folder name, in any case.
    """
    folders = {item.name.casefold(): item for item in path.iterdir()} if path.is_dir() else {}
    found: dict[str, dict[int, Path]] = {}
    for item, safe in zip(classes, layout.folder_classes(classes), strict=True):
        folder = folders.get(item.name.casefold()) or folders.get(safe.name.casefold())
        if folder is None or not folder.is_dir():
            continue
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in _RASTERS:
                found.setdefault(file.stem, {})[item.value] = file
    return found


def named_folders(path: Path) -> ClassSchema | None:
    """The classes that the folders name, numbered from 1 by name; None if there are none."""
    names = sorted(item.name for item in path.iterdir() if item.is_dir()) if path.is_dir() else []
    return ClassSchema.from_values(dict(enumerate(names, start=1))) if names else None


def decode_instances(chip: Chip, shape: tuple[int, int]) -> dict[int, npt.NDArray[Any]]:
    """The masks of a chip's objects, by class value  # (rows, cols), 0 = none.

    Bands of a file hold numbers of their own; they are numbered on, the later band on top.

    Raises:
        TrainingDataError: a file cannot be read, or is not of the chip's size.
    """
    return {value: _flat(path, shape) for value, path in sorted(chip.labels.items())}


def _flat(path: Path, shape: tuple[int, int]) -> npt.NDArray[Any]:
    bands = decode_labels(path)
    if bands.shape[1:] != shape:
        raise TrainingDataError(
            f"The label {path} has {bands.shape[1]} rows of {bands.shape[2]} pixels, its chip {shape[0]} of "
            f"{shape[1]}.",
            "Export the training data again.",
        )
    if bands.min(initial=0) < 0:
        raise TrainingDataError(
            f"The label {path} holds negative object numbers.", "Export the training data again."
        )
    if len(bands) == 1:
        first: npt.NDArray[Any] = bands[0]
        return first
    out = np.zeros(shape, np.int64)
    for band in bands.astype(np.int64):
        out = np.where(band > 0, band + out.max(), out)
    return out


def areas_of_instances(masks: Mapping[int, npt.NDArray[Any]], pixel_area: float) -> dict[int, list[float]]:
    """The area of each object by its pixels, by class value."""
    return {value: (np.bincount(mask.ravel())[1:] * pixel_area).tolist() for value, mask in masks.items()}
