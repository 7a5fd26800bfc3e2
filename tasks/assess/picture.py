"""A picture of what was found and missed, over the imagery."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely

from tasks.assess.object_accuracy import AreaResult
from tasks.imagery import RasterInfo

if TYPE_CHECKING:
    from PIL import ImageDraw

LEGEND = "green: truth that was found, red: truth that was missed, blue: right detection, orange: wrong one"
_FOUND, _MISSED, _RIGHT, _WRONG = "#2ecc40", "#ff2d2d", "#3aa0ff", "#ff9f1a"
_MOST_BYTES = 200_000


def picture_of(result: AreaResult, info: RasterInfo, edge_px: int = 900) -> bytes:
    """The area as a JPEG of at most 200 kB, objects outlined as :data:`LEGEND` says.

    Args:
        result: one area's objects and matches.
        info: the raster whose footprint the area is.
        edge_px: longest edge of the picture.
    """
    from affine import Affine
    from PIL import Image, ImageDraw

    values = _overview(info, edge_px)
    image = Image.fromarray(values)
    scale_x, scale_y = values.shape[1] / info.width, values.shape[0] / info.height
    to_picture = Affine.scale(scale_x, scale_y) @ ~Affine(*info.transform)
    draw = ImageDraw.Draw(image)
    matches = result.matches
    for number, geometry in enumerate(result.detections.geometries):
        if matches.counted[number]:
            _outline(draw, geometry, to_picture, _RIGHT if matches.truth[number] >= 0 else _WRONG)
    found = matches.found
    for number, geometry in enumerate(result.truths.geometries):
        if matches.truth_counted[number]:
            _outline(draw, geometry, to_picture, _FOUND if found[number] else _MISSED)
    for quality in (85, 70, 50, 30):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        if out.tell() <= _MOST_BYTES:
            break
    return out.getvalue()


def _overview(info: RasterInfo, edge_px: int) -> npt.NDArray[np.uint8]:
    """The first three bands (or the first), shrunk and stretched to 8 bits.  # (rows, cols, 3)"""
    from rasterio.enums import Resampling

    from tasks.imagery.raster import open_raster, raster_environment

    scale = min(1.0, edge_px / max(info.width, info.height))
    shape = max(1, round(info.height * scale)), max(1, round(info.width * scale))
    bands = [1, 2, 3] if info.band_count >= 3 else [1, 1, 1]
    with raster_environment(info.uri), open_raster(info.uri) as dataset:
        values = dataset.read(bands, out_shape=(3, *shape), resampling=Resampling.average).astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (2, 98)) if finite.size else (0.0, 1.0)
    stretched = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255
    return np.ascontiguousarray(np.nan_to_num(stretched).astype(np.uint8).transpose(1, 2, 0))


def _outline(draw: ImageDraw.ImageDraw, geometry: shapely.Geometry, to_picture: Any, color: str) -> None:
    for part in shapely.get_parts(geometry):
        if isinstance(part, shapely.Polygon) and not part.is_empty:
            ring = [to_picture @ point[:2] for point in part.exterior.coords]
            draw.line(ring, fill=color, width=2)
