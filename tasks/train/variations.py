"""The steps of a recipe (augmentation CUSTOM and FILE), done to a picture and to what it is labelled with.

Geometry is torchvision's (``transforms.v2.functional``); it knows three bands at most where colours are
concerned, so that these are changed here, over any number of bands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode, functional

from tasks.train.augmentation import nearest_pixels
from tasks.train.normalisation import Normalisation
from tasks.train.recipes import Recipe, Step

_BILINEAR = InterpolationMode.BILINEAR


@dataclass
class View:
    """A chip on its way to a sample; what it has not is None.

    Attributes:
        image: normalised  # (bands, rows, cols) float32
        unknown: 1 where a band holds no data  # (bands, rows, cols) uint8
        layers: labels or numbers of objects  # (n, rows, cols), whole numbers
        boxes: xmin, ymin, xmax, ymax  # (n, 4) float32, not cut at the edges
        area: by how much areas have grown.
        cropped: whether a step has chosen the window.
    """

    image: tv_tensors.Image
    unknown: tv_tensors.Mask
    layers: tv_tensors.Mask | None = None
    boxes: tv_tensors.BoundingBoxes | None = None
    area: float = 1.0
    cropped: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return int(self.image.shape[-2]), int(self.image.shape[-1])


def view_of(
    image: Tensor, unknown: Tensor | None, layers: Tensor | None = None, boxes: Tensor | None = None
) -> View:
    """The arrays of a chip; all are known where ``unknown`` is None."""
    given = torch.zeros(image.shape, dtype=torch.uint8) if unknown is None else unknown
    canvas = (int(image.shape[-2]), int(image.shape[-1]))
    return View(
        image=tv_tensors.Image(image),
        unknown=tv_tensors.Mask(given),
        layers=None if layers is None else tv_tensors.Mask(layers),
        boxes=None
        if boxes is None
        else tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas, clamping_mode=None),
    )


def vary(
    view: View, recipe: Recipe, normalisation: Normalisation, rng: np.random.Generator, *, outside: int
) -> View:
    """Do the steps of a recipe, in their order.

    Args:
        outside: value of the layers where a rotation has brought in what no chip shows.
    """
    for step in recipe.steps:
        if rng.random() >= step.probability:
            continue
        value = float(rng.uniform(*step.values))
        if step.name == "rotate":
            _rotate(view, value, outside)
        elif step.name == "brightness":
            _brighten(view, value, normalisation)
        elif step.name == "contrast":
            _stretch(view, value)
        elif step.name == "zoom":
            _zoom(view, value, rng)
        elif step.name == "crop":
            _crop(view, step, rng)
        else:
            _turn(view, int(rng.integers(2 if recipe.upright else 8)))
    # What holds no data looks as it does when the package is applied: 0, normalised.
    nothing = torch.from_numpy(normalisation.nothing)[:, None, None]
    view.image = tv_tensors.Image(torch.where(view.unknown.bool(), nothing, view.image))
    return view


def resize(view: View, rows: int, cols: int) -> View:
    """The view in another size."""
    before = view.shape
    if before != (rows, cols):
        _all(view, _resized, size=[rows, cols])
        view.area *= rows * cols / (before[0] * before[1])
    return view


def crop(view: View, row: int, col: int, rows: int, cols: int) -> View:
    """A window of the view."""
    _all(view, functional.crop, top=row, left=col, height=rows, width=cols)
    return view


def _resized(part: Any, *, size: list[int]) -> Any:
    """Labels and what is unknown by :func:`tasks.train.augmentation.nearest_pixels`.

    torchvision counts pixels of masks from their corners, whatever interpolation it is asked for.
    """
    if not isinstance(part, tv_tensors.Mask):
        return functional.resize(part, size=size, antialias=True)
    row, col = (
        torch.from_numpy(nearest_pixels(old, new)) for old, new in zip(part.shape[-2:], size, strict=True)
    )
    return tv_tensors.Mask(part.as_subclass(Tensor)[..., row[:, None], col])


def _all(view: View, change: Any, **arguments: Any) -> None:
    view.image = change(view.image, **arguments)
    view.unknown = change(view.unknown, **arguments)
    if view.layers is not None:
        view.layers = change(view.layers, **arguments)
    if view.boxes is not None:
        view.boxes = change(view.boxes, **arguments)


def _rotate(view: View, degrees: float, outside: int) -> None:
    view.image = functional.rotate(view.image, degrees, interpolation=_BILINEAR)
    view.unknown = functional.rotate(view.unknown, degrees, fill=1)
    if view.layers is not None:
        view.layers = functional.rotate(view.layers, degrees, fill=outside)
    if view.boxes is not None:
        # The box around the turned box: of what stands in it nothing more is known.
        view.boxes = functional.rotate(view.boxes, degrees)


def _zoom(view: View, factor: float, rng: np.random.Generator) -> None:
    rows, cols = view.shape
    height, width = max(1, round(rows / factor)), max(1, round(cols / factor))
    top, left = int(rng.integers(0, rows - height + 1)), int(rng.integers(0, cols - width + 1))
    crop(view, top, left, height, width)
    resize(view, rows, cols)


def _crop(view: View, step: Step, rng: np.random.Generator) -> None:
    rows, cols = view.shape
    height, width = min(int(step.values[0]), rows), min(int(step.values[0]), cols)
    top = round((rows - height) * float(rng.uniform(*step.rows)))
    left = round((cols - width) * float(rng.uniform(*step.cols)))
    crop(view, top, left, height, width)
    view.cropped = True


def _turn(view: View, code: int) -> None:
    """As :func:`tasks.train.augmentation.dihedral`."""
    if code & 1:
        _all(view, functional.horizontal_flip)
    if code & 2:
        _all(view, functional.vertical_flip)
    if code & 4:
        view.image = tv_tensors.Image(view.image.transpose(-1, -2))
        view.unknown = tv_tensors.Mask(view.unknown.transpose(-1, -2))
        if view.layers is not None:
            view.layers = tv_tensors.Mask(view.layers.transpose(-1, -2))
        if view.boxes is not None:
            swapped = view.boxes.as_subclass(Tensor)[:, [1, 0, 3, 2]]
            view.boxes = tv_tensors.BoundingBoxes(
                swapped, format="XYXY", canvas_size=view.shape, clamping_mode=None
            )


def _brighten(view: View, change: float, normalisation: Normalisation) -> None:
    """0 makes the range's lower end of all, 1 its upper end, 0.5 leaves all as it is; straight between."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32)[:, None, None]
        for values in (normalisation.mean, normalisation.std)
    )
    share = 2 * change if change <= 0.5 else 2 - 2 * change
    end = -mean / std if change <= 0.5 else (1 - mean) / std
    view.image = tv_tensors.Image(view.image * share + (1 - share) * end)


def _stretch(view: View, factor: float) -> None:
    known = (view.unknown == 0).float()
    mean = (view.image * known).sum(dim=(1, 2), keepdim=True)
    mean = mean / known.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    view.image = tv_tensors.Image((view.image - mean) * factor + mean)
