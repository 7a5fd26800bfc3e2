"""A contact sheet: some chips with their labels drawn in, small enough for a run's page."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from tasks.export.plan import ExportPlan
from tasks.labels import ClassSchema
from tasks.store import ObjectStore, join
from tasks.training_data import Chip, layout, read_boxes, read_chip_image, read_class_mask

_CHIPS = 12
_ACROSS = 4
_GAP_PX = 4
_TINT = 0.35
# A data URI grows by a third; 200 kB is the most that a page should carry.
MAX_BYTES = 140_000


def contact_sheet(store: ObjectStore, plan: ExportPlan, *, chip_px: int = 192) -> bytes:
    """A JPEG with up to 12 chips, evenly spread over the export; labels in their class's colour.

    Args:
        chip_px: edge of a chip in the picture.

    Returns:
        At most ``MAX_BYTES`` bytes.
    """
    count = min(_CHIPS, plan.chips)
    steps = np.linspace(0, plan.chips - 1, count).astype(int)
    numbers = [plan.parameters.start_index + int(step) for step in steps]
    across = min(_ACROSS, count)
    down = -(-count // across)
    pitch = chip_px + _GAP_PX
    sheet = Image.new("RGB", (across * pitch - _GAP_PX, down * pitch - _GAP_PX), (255, 255, 255))
    with tempfile.TemporaryDirectory(prefix="preview-") as folder:
        for place, number in enumerate(numbers):
            chip = _fetch(store, plan, number, Path(folder))
            picture = _drawn(chip, plan, chip_px)
            sheet.paste(picture, (place % across * pitch, place // across * pitch))
    return _encoded(sheet)


def _fetch(store: ObjectStore, plan: ExportPlan, number: int, folder: Path) -> Chip:
    stem = layout.chip_stem(number)
    names = (
        f"{layout.IMAGES}/{stem}{layout.IMAGE_EXTENSIONS[plan.parameters.chip_format]}",
        f"{layout.LABELS}/{stem}{layout.LABEL_EXTENSIONS[plan.parameters.metadata_format]}",
    )
    for name in names:
        store.download(join(plan.folder_uri, name), folder / name)
    return Chip(stem, folder / names[0], folder / names[1], None, plan.schema_of_classes)


def _drawn(chip: Chip, plan: ExportPlan, chip_px: int) -> Image.Image:
    pixels = as_rgb(read_chip_image(chip))
    if plan.parameters.metadata_format == layout.CLASSIFIED_TILES:
        pixels = tinted(pixels, read_class_mask(chip), chip.classes)
        return Image.fromarray(pixels).resize((chip_px, chip_px))
    picture = Image.fromarray(pixels).resize((chip_px, chip_px))
    draw = ImageDraw.Draw(picture)
    scale_x, scale_y = chip_px / pixels.shape[1], chip_px / pixels.shape[0]
    colors = {item.value: item.color for item in chip.classes}
    for value, xmin, ymin, xmax, ymax in read_boxes(chip):
        box = (xmin * scale_x, ymin * scale_y, xmax * scale_x - 1, ymax * scale_y - 1)
        if box[2] >= box[0] and box[3] >= box[1]:
            draw.rectangle(box, outline=colors[value], width=2)
    return picture


def as_rgb(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The first three bands (or the first one, in grey) for the eye  # (rows, cols, 3).

    Anything but 8-bit pixels is stretched from the 2nd to the 98th percentile of each band.
    """
    shown = values[:3] if values.shape[0] >= 3 else np.repeat(values[:1], 3, axis=0)
    if shown.dtype != np.uint8:
        wide = np.nan_to_num(shown.astype(np.float64))
        low, high = np.percentile(wide, (2, 98), axis=(1, 2), keepdims=True)
        shown = np.clip((wide - low) / np.maximum(high - low, 1e-12) * 255, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(shown.transpose(1, 2, 0))


def tinted(
    pixels: npt.NDArray[np.uint8], mask: npt.NDArray[Any], classes: ClassSchema
) -> npt.NDArray[np.uint8]:
    """The picture with each class's pixels tinted and its outline in full colour  # (rows, cols, 3)."""
    out = pixels.astype(np.float64)
    inner = mask.astype(np.int64)
    edge = np.zeros(mask.shape, dtype=bool)
    edge[1:] |= inner[1:] != inner[:-1]
    edge[:, 1:] |= inner[:, 1:] != inner[:, :-1]
    for item in classes:
        color, here = np.array(item.color, dtype=np.float64), inner == item.value
        out[here] = (1 - _TINT) * out[here] + _TINT * color
        out[here & edge] = color
    return out.astype(np.uint8)


def _encoded(sheet: Image.Image) -> bytes:
    for quality in (85, 70, 55, 40, 25):
        out = io.BytesIO()
        sheet.save(out, "JPEG", quality=quality, optimize=True)
        if out.tell() <= MAX_BYTES:
            return out.getvalue()
    half = sheet.resize((max(1, sheet.width // 2), max(1, sheet.height // 2)))
    return _encoded(half)
