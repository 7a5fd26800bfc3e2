"""A picture that a person can judge: the prediction over the imagery, small enough for an artifact."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tasks.imagery import Grid, Pixels, RasterInfo, Window, inspect_raster
from tasks.imagery.overview import picture_grid, read_overview
from tasks.labels import LabelClass

_TINT = 0.45
_SMOOTH = 2  # outlines are drawn this much larger and shrunk
_QUALITIES = (90, 82, 74, 66, 58, 50)
_SMALL_PX = 800
_RGB = ("red", "green", "blue")

PREVIEW_BYTES = 140_000
"""Of a picture on a run's page; as a data URI it is a third larger."""

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Outlines:
    """Objects to be drawn.

    Attributes:
        geometry: polygons and multipolygons in the coordinates of the picture's CRS.
        class_name: name of each one's class; its colour is looked up by name.
    """

    geometry: NDArray[np.object_]
    class_name: Sequence[str]


def picture(
    infos: Sequence[RasterInfo],
    classes: Sequence[LabelClass],
    *,
    classified: str | None = None,
    outlines: Outlines | None = None,
    grid: Grid | None = None,
    max_px: int = 1200,
    max_bytes: int = 200_000,
) -> bytes:
    """The imagery with a classified raster tinted over it, or with objects' outlines, as a JPEG.

    Args:
        infos: the imagery, in the collection's order.
        classes: names and colours; classes that occur are listed in a legend with their counts.
        classified: URI or path of a classified raster; its nodata and its value 0 stay untinted.
        outlines: objects; a class that is not in ``classes`` is drawn in white.
        grid: what to show, for instance the grid of one item; None shows all of the imagery, in the CRS of
            its first raster.
        max_px: longest side.
        max_bytes: largest size; quality goes first, then size.

    Returns:
        JPEG bytes. Very large imagery without overviews is shown around its centre.

    Raises:
        RasterError: imagery or result cannot be read.
    """
    view = picture_grid(infos, grid, max_px=max_px)
    imagery = read_overview(infos, view, picture_bands(infos[0]))
    image = background(imagery)
    entries: list[tuple[str, Color]] = []
    if classified is not None:
        pixels = read_overview([inspect_raster(classified)], view, (0,), resampling="nearest")
        image, entries = _tinted(image, pixels, classes, of_pixels=int(imagery.valid.sum()))
    image, view = _enlarged(image, view)
    if outlines is not None:
        image, drawn = _outlined(image, outlines, view, classes)
        entries += drawn
    _legend(image, entries)
    return as_jpeg(image, max_bytes=max_bytes)


def picture_bands(info: RasterInfo) -> tuple[int, ...]:
    """Zero-based bands that a picture shows: red, green, blue where they are named, else the first ones."""
    if all(name in info.colorinterp for name in _RGB):
        return tuple(info.colorinterp.index(name) for name in _RGB)
    colours = [index for index, name in enumerate(info.colorinterp) if name != "alpha"]
    return tuple(colours[:3]) if len(colours) >= 3 else tuple(colours[:1] or [0])


def background(pixels: Pixels) -> Image.Image:
    """One or three bands as an RGB picture; 8-bit values stay, others run from percentile 2 to 98."""
    values = pixels.values
    if values.dtype != np.uint8:
        stretched = np.zeros(values.shape, dtype=np.uint8)
        for band, target in zip(values.astype(np.float64), stretched, strict=True):
            known = band[pixels.valid & np.isfinite(band)]
            low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
            scaled = (np.nan_to_num(band) - low) / max(high - low, 1e-12) * 255
            target[:] = np.clip(scaled, 0, 255).astype(np.uint8)
        values = stretched
    shown = np.where(pixels.valid, values, 255).astype(np.uint8)
    if len(shown) == 1:
        shown = np.repeat(shown, 3, axis=0)
    return Image.fromarray(np.ascontiguousarray(shown.transpose(1, 2, 0)))


def as_jpeg(image: Image.Image, *, max_bytes: int) -> bytes:
    """The picture in at most ``max_bytes``: the best quality that fits, then smaller."""
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality, subsampling=0 if quality > 80 else 2)
            if buffer.tell() <= max_bytes or max(image.size) <= 16:
                return buffer.getvalue()
        width, height = image.size
        image = image.resize((max(1, width * 4 // 5), max(1, height * 4 // 5)), Image.Resampling.LANCZOS)


def _tinted(
    image: Image.Image, pixels: Pixels, classes: Sequence[LabelClass], *, of_pixels: int
) -> tuple[Image.Image, list[tuple[str, Color]]]:
    colours = np.asarray(image, dtype=np.float32).copy()  # (rows, cols, 3)
    values = pixels.values[0]
    entries = []
    for item in classes:
        here = (values == item.value) & pixels.valid
        if item.value == 0 or not here.any():
            continue
        colours[here] = (1 - _TINT) * colours[here] + _TINT * np.array(item.color)
        colours[here & _edge(here)] = item.color
        entries.append((f"{item.name}  {here.sum() / max(1, of_pixels):.1%}", item.color))
    return Image.fromarray(colours.round().astype(np.uint8)), entries


def _enlarged(image: Image.Image, view: Grid) -> tuple[Image.Image, Grid]:
    """A small picture by a whole factor larger, so that outlines and legend do not hide it."""
    factor = max(1, min(3, _SMALL_PX // max(image.size)))
    if factor == 1:
        return image, view
    a, b, c, d, e, f = view.transform
    finer = Grid(view.crs_wkt, (a / factor, b, c, d, e / factor, f), view.rows * factor, view.cols * factor)
    return image.resize((finer.cols, finer.rows), Image.Resampling.BICUBIC), finer


def _edge(here: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of an area with a neighbour outside of it; the picture's border is no edge."""
    wide = np.pad(here, 1, mode="edge")
    inner = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return np.asarray(here & ~inner)


def _outlined(
    image: Image.Image, outlines: Outlines, view: Grid, classes: Sequence[LabelClass]
) -> tuple[Image.Image, list[tuple[str, Color]]]:
    colours = {item.name: item.color for item in classes}
    large = image.resize((image.width * _SMOOTH, image.height * _SMOOTH), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(large)
    width = max(3, round(max(large.size) / 450))
    counts: dict[str, int] = {}
    near = shapely.box(*view.window_bounds(Window(-2, -2, view.rows + 4, view.cols + 4)))
    for index in np.flatnonzero(shapely.intersects(outlines.geometry, near)).tolist():
        name = outlines.class_name[index]
        counts[name] = counts.get(name, 0) + 1
        for part in shapely.get_parts(outlines.geometry[index]):
            for ring in shapely.get_rings(part):
                pixels = [view.to_pixel(x, y) for x, y in shapely.get_coordinates(ring).tolist()]
                points = [(col * _SMOOTH, row * _SMOOTH) for col, row in pixels]
                # A dark casing keeps any colour apart from any ground.
                draw.line(points, fill=(0, 0, 0), width=width + 2, joint="curve")
                draw.line(points, fill=colours.get(name, (255, 255, 255)), width=width, joint="curve")
    entries = [
        (f"{name}  {count:,}", colours.get(name, (255, 255, 255))) for name, count in sorted(counts.items())
    ]
    return large.resize(image.size, Image.Resampling.LANCZOS), entries


def _legend(image: Image.Image, entries: Sequence[tuple[str, Color]]) -> None:
    """Draw the classes into the lower left corner, as many as fit."""
    if not entries or min(image.size) < 120:
        return
    size = max(11, min(18, max(image.size) // 60))
    # Matplotlib carries a font with letters for most languages; Pillow's own knows English only.
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    pitch, margin = round(size * 1.5), size // 2
    shown = list(entries[: max(1, (image.height // 2) // pitch)])
    if len(shown) < len(entries):
        shown[-1] = (f"and {len(entries) - len(shown) + 1} more", (255, 255, 255))
    draw = ImageDraw.Draw(image, "RGBA")
    width = max(draw.textlength(text, font=font) for text, _ in shown)
    top = image.height - margin - pitch * len(shown)
    draw.rectangle(
        (margin, top - margin, margin + width + 3 * size, image.height - margin), fill=(0, 0, 0, 150)
    )
    for row, (text, color) in enumerate(shown):
        y = top + row * pitch
        draw.rectangle((2 * margin, y, 2 * margin + size, y + size), fill=(*color, 255))
        draw.text((2 * margin + size * 1.5, y - size * 0.1), text, fill=(255, 255, 255, 255), font=font)
