"""Pictures of an export, small enough for a run's page: a contact sheet, and the chips on the imagery."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from tasks.export.cut import read_result
from tasks.export.plan import ExportPlan
from tasks.imagery import Grid
from tasks.imagery.overview import picture_grid, read_overview
from tasks.labels import ClassSchema
from tasks.store import ObjectStore, join
from tasks.training_data import Chip, layout, open_training_data, read_chip_image
from tasks.training_data.formats import format_of
from tasks.training_data.sample import ChipRecord, Context

_CHIPS = 12
_ACROSS = 4
_GAP_PX = 4
_TINT = 0.35
# A data URI grows by a third; 200 kB is the most that a page should carry.
MAX_BYTES = 140_000
_OUTLINE = (255, 220, 0)
_NEUTRAL = (255, 255, 255)
# More outlines than this would hide the imagery; the chips are then a tint.
_MOST_OUTLINES = 3000


def contact_sheet(store: ObjectStore, plan: ExportPlan, *, chip_px: int = 192) -> bytes:
    """A JPEG with up to 12 chips, evenly spread over the export; labels in their class's colour.

    Args:
        chip_px: longest edge of a chip in the picture.

    Returns:
        At most ``MAX_BYTES`` bytes.
    """
    with tempfile.TemporaryDirectory(prefix="preview-") as folder:
        chips = _fetched(store, plan, Path(folder))
        across = min(_ACROSS, len(chips))
        down = -(-len(chips) // across)
        pitch = chip_px + _GAP_PX
        sheet = Image.new("RGB", (across * pitch - _GAP_PX, down * pitch - _GAP_PX), _NEUTRAL)
        for place, chip in enumerate(chips):
            sheet.paste(_drawn(chip, chip_px), (place % across * pitch, place // across * pitch))
    return _encoded(sheet)


def footprints(store: ObjectStore, plan: ExportPlan, *, max_px: int = 1000) -> bytes:
    """A JPEG of the imagery with the chips drawn on it: outlines, or a tint where there are many.

    Rasters in another coordinate system than the first item's are left out.

    Returns:
        At most ``MAX_BYTES`` bytes.
    """
    first = plan.items[0]
    crs = first.grid["crs_wkt"]
    # Raw images have pixel coordinates of their own and cannot share a picture.
    alike = [
        index
        for index, item in enumerate(plan.items)
        if item.side == first.side and (index == 0 or (crs is not None and item.grid["crs_wkt"] == crs))
    ]
    infos = [info for index in alike for info in plan.items[index].infos()]
    view = picture_grid(infos, first.target() if len(alike) == 1 else None, max_px=max_px)
    bands = first.bands.indices[:3] if len(first.bands.indices) >= 3 else first.bands.indices[:1]
    pixels = read_overview(infos, view, bands)
    picture = Image.fromarray(as_rgb(np.where(pixels.valid, pixels.values, 0)))
    chips = sum(
        plan.parts[number].chips for number in range(len(plan.parts)) if plan.parts[number].item in alike
    )
    layer = Image.new("L", picture.size, 0)
    draw = ImageDraw.Draw(layer)
    for number, part in enumerate(plan.parts):
        if part.item in alike:
            for record in _records(store, plan, number):
                _outline(draw, record, view, filled=chips > _MOST_OUTLINES)
    picture.paste(Image.new("RGB", picture.size, _OUTLINE), mask=layer)
    return _encoded(picture)


def _outline(draw: ImageDraw.ImageDraw, record: ChipRecord, view: Grid, *, filled: bool) -> None:
    points = [view.to_pixel(x, y) for x, y in zip(record.corners[::2], record.corners[1::2], strict=True)]
    if filled:
        draw.polygon(points, fill=110)
    else:
        draw.polygon(points, outline=255)


def _records(store: ObjectStore, plan: ExportPlan, part: int) -> Iterator[ChipRecord]:
    result = read_result(store, plan.folder_uri, part)
    if result is not None:
        yield from result.chips


def _fetched(store: ObjectStore, plan: ExportPlan, folder: Path) -> list[Chip]:
    """Some chips of the first side as a small training data folder of their own, opened."""
    side = plan.items[0].side
    mine = [number for number, part in enumerate(plan.parts) if plan.items[part.item].side == side]
    ends = np.cumsum([plan.parts[number].chips for number in mine])
    records = []
    for step in np.unique(np.linspace(0, int(ends[-1]) - 1, _CHIPS).astype(int)).tolist():
        place = int(np.searchsorted(ends, step, side="right"))
        within = step - int(ends[place] - plan.parts[mine[place]].chips)
        records.append(list(_records(store, plan, mine[place]))[within])
    records.sort(key=lambda record: record.number)
    chosen = format_of(plan.parameters.metadata_format)
    context = Context(
        plan.parameters.chip_format,
        plan.items[0].target().crs_wkt,
        plan.schema_of_classes,
        plan.schema_of_instances,
    )
    own = chosen.side_writer(context, folder)
    root = join(plan.folder_uri, side) if side else plan.folder_uri
    for record in records:
        own.add(record)
        for path in record.paths:
            store.download(join(root, path), folder / path)
            _fetch_beside(store, join(root, path), folder / path)
    for path, file in own.close().items():
        if file != folder / path:
            (folder / path).write_bytes(file.read_bytes())
    for name in (layout.DEFINITION, layout.ACCUMULATED_STATS):
        store.download(join(root, name), folder / name)
    return open_training_data(folder).chips


def _fetch_beside(store: ObjectStore, uri: str, path: Path) -> None:
    """The files that belong to an MRF."""
    if path.suffix == ".mrf":
        for found in store.list(uri[: -len("mrf")]):
            store.download(found.uri, path.with_name(found.uri.rsplit("/", 1)[1]))


def _drawn(chip: Chip, chip_px: int) -> Image.Image:
    pixels = as_rgb(read_chip_image(chip))
    chosen = format_of(chip.metadata_format)
    if {"mask", "instance data"} & chosen.needs:
        pixels = tinted(pixels, chosen.mask(chip), chip.classes)
    elif "instances" in chosen.needs:
        for value, numbers in chosen.instances(chip).items():
            pixels = tinted(pixels, numbers, chip.classes, as_value=value)
    scale = chip_px / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    picture = Image.fromarray(pixels).resize(size)
    draw = ImageDraw.Draw(picture)
    by_value = {item.value: item for item in chip.classes}
    if "objects" in chosen.needs and "instances" not in chosen.needs and not chip.values:
        for value, xmin, ymin, xmax, ymax in chosen.boxes(chip):
            box = (xmin * scale, ymin * scale, xmax * scale - 1, ymax * scale - 1)
            if box[2] >= box[0] and box[3] >= box[1]:
                draw.rectangle(box, outline=by_value[value].color, width=2)
    for line, value in enumerate(chip.values):
        found = by_value[value]
        draw.rectangle((0, line * 14, 8 + 7 * len(found.name), line * 14 + 13), fill=(0, 0, 0))
        draw.text((3, line * 14 + 1), found.name, fill=found.color)
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
    pixels: npt.NDArray[np.uint8],
    mask: npt.NDArray[Any],
    classes: ClassSchema,
    *,
    as_value: int | None = None,
) -> npt.NDArray[np.uint8]:
    """The picture with each class's pixels tinted and its outline in full colour  # (rows, cols, 3).

    Args:
        as_value: the mask holds numbers of objects, which all are of this class.
    """
    out = pixels.astype(np.float64)
    inner = mask.astype(np.int64)
    edge = np.zeros(mask.shape, dtype=bool)
    edge[1:] |= inner[1:] != inner[:-1]
    edge[:, 1:] |= inner[:, 1:] != inner[:, :-1]
    for item in classes:
        if as_value is not None and item.value != as_value:
            continue
        color = np.array(item.color, dtype=np.float64)
        here = inner == item.value if as_value is None else inner > 0
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
