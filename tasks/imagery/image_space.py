"""Image space: where positions on the map lie in a raw image, by affine, control points or RPCs."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.rpc import RPC
from rasterio.transform import GCPTransformer, RPCTransformer

from tasks.errors import BadInputError
from tasks.imagery.grid import Bounds
from tasks.imagery.identity import unsigned
from tasks.imagery.raster import RasterInfo, open_raster, raster_environment

Positions = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Two coordinates of many points: (x, y) on the map, (column, row) in an image."""

_Mapping = Callable[[NDArray[np.float64], NDArray[np.float64]], Positions]

_SPLINE_ABOVE_PX = 0.5
_MOST_SPLINE_POINTS = 1000
_SAMPLES = 21


@dataclass(frozen=True, eq=False)
class ImageTransform:
    """A raster's own way from the map to its pixels.

    Attributes:
        kind: "rpcs", "gcps" or "affine": what it was made from.
        crs_wkt: reference system of the map side; x is the easting or longitude, whatever the authority's
            order of axes.
        height: height above the ellipsoid that is assumed for every position, m; None unless RPCs.
        up_quarters: by how many quarters a :class:`Place` must be turned (``angle = 90 * up_quarters``, so
            that the chip is ``np.rot90(pixels, -up_quarters)``) for what stands upright to point up: 0 to 3.
            0 for control points and affines, which know no heights, and for views from straight above.
        residual_px: by how much the transform misses the raster's control points at most, px; 0 for others.
        reach: (xmin, ymin, xmax, ymax) on the map where the transform itself is used, None for everywhere.
            Beyond, it goes on linearly, so that what is far away never folds into the image.
    """

    kind: Literal["rpcs", "gcps", "affine"]
    crs_wkt: str
    height: float | None
    up_quarters: int
    residual_px: float
    reach: Bounds | None
    _forward: _Mapping
    _backward: _Mapping
    _linear: NDArray[np.float64]  # (2, 2): how columns and rows grow with x and y, beyond the reach

    def to_image(self, xs: ArrayLike, ys: ArrayLike) -> Positions:
        """Positions in the image, px: (columns, rows); (0, 0) is the corner of the first pixel.

        Usable from several threads.

        Args:
            xs: eastings or longitudes in ``crs_wkt``.
            ys: northings or latitudes.
        """
        x, y = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
        if self.reach is None or not x.size:
            return self._forward(x, y)
        xmin, ymin, xmax, ymax = self.reach
        near_x, near_y = np.clip(x, xmin, xmax), np.clip(y, ymin, ymax)
        cols, rows = self._forward(near_x.ravel(), near_y.ravel())
        cols, rows = cols.reshape(x.shape), rows.reshape(x.shape)
        beyond_x, beyond_y = x - near_x, y - near_y
        return (
            cols + self._linear[0, 0] * beyond_x + self._linear[0, 1] * beyond_y,
            rows + self._linear[1, 0] * beyond_x + self._linear[1, 1] * beyond_y,
        )

    def to_map(self, cols: ArrayLike, rows: ArrayLike) -> Positions:
        """Positions on the map in ``crs_wkt`` of positions in the image: (xs, ys); the way back.

        Usable from several threads. Within the image; beyond, what the transform itself gives.
        """
        col, row = np.asarray(cols, np.float64), np.asarray(rows, np.float64)
        if not col.size:
            return col, row
        x, y = self._backward(col.ravel(), row.ravel())
        return x.reshape(col.shape), y.reshape(row.shape)


def image_transform(info: RasterInfo, *, height: float | None = None) -> ImageTransform:
    """The map-to-image transform that a raster carries: RPCs before control points before the affine.

    Args:
        info: the raster.
        height: height above the ellipsoid of what is in the image, m; None takes the RPCs' own mean height
            (HEIGHT_OFF). Used with RPCs only.

    Raises:
        BadInputError: the raster carries no transform, or one that cannot be used.
        NotFoundError, RasterError: the raster cannot be opened.
    """
    with raster_environment(info.uri), open_raster(info.uri) as dataset:
        rpcs, (gcps, gcp_crs) = dataset.rpcs, dataset.gcps
    try:
        if rpcs is not None:
            return _from_rpcs(rpcs, info, height)
        if gcps:
            return _from_gcps(gcps, gcp_crs, info)
    except (RasterioError, CPLE_BaseError, np.linalg.LinAlgError) as error:
        raise _unusable(info, str(error)) from error
    return _from_affine(info)


def carries_transform(info: RasterInfo) -> bool:
    """Whether a raster says where it lies: by a reference system, control points or RPCs.

    Raises:
        NotFoundError, RasterError: the raster cannot be opened.
    """
    if info.crs_wkt is not None:
        return True
    with raster_environment(info.uri), open_raster(info.uri) as dataset:
        return dataset.rpcs is not None or bool(dataset.gcps[0])


def in_pixel_space(info: RasterInfo) -> RasterInfo:
    """The raster as it lies in its file, without the map: x is the column, y is minus the row."""
    return info.model_copy(update={"crs_wkt": None, "transform": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)})


def _from_affine(info: RasterInfo) -> ImageTransform:
    affine = Affine(*info.transform)
    if info.crs_wkt is None:
        raise BadInputError(
            f"{unsigned(info.uri)} carries no transform from the map to the image: it has neither RPCs nor "
            "control points nor a reference system.",
            "Give a raster with RPCs (for example an _RPC.TXT beside it), control points or a georeference, "
            "or use MAP_SPACE with a georeferenced raster.",
        )
    if affine.is_degenerate:
        raise _unusable(info, f"the transform {info.transform} is flat")
    inverse = ~affine

    def forward(x: NDArray[np.float64], y: NDArray[np.float64]) -> Positions:
        return inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f

    def backward(cols: NDArray[np.float64], rows: NDArray[np.float64]) -> Positions:
        return affine.a * cols + affine.b * rows + affine.c, affine.d * cols + affine.e * rows + affine.f

    linear = np.array([[inverse.a, inverse.b], [inverse.d, inverse.e]])
    return ImageTransform("affine", info.crs_wkt, None, 0, 0.0, None, forward, backward, linear)


def _from_rpcs(rpcs: RPC, info: RasterInfo, height: float | None) -> ImageTransform:
    level = float(rpcs.height_off) if height is None else height
    if not math.isfinite(level):
        raise BadInputError(f"The height {level} is not a number.", "Give it in metres above the ellipsoid.")
    run = _Transformer(RPCTransformer(rpcs))
    reach, linear = _reach(run, info, level)
    lean = _lean(run, rpcs, level)

    def forward(x: NDArray[np.float64], y: NDArray[np.float64]) -> Positions:
        return run.to_image(x, y, level)

    def backward(cols: NDArray[np.float64], rows: NDArray[np.float64]) -> Positions:
        return run.to_map(cols, rows, level)

    crs_wkt = str(CRS.from_epsg(4326).to_wkt())
    return ImageTransform("rpcs", crs_wkt, level, _quarters(*lean), 0.0, reach, forward, backward, linear)


def _from_gcps(gcps: Sequence[GroundControlPoint], crs: CRS | None, info: RasterInfo) -> ImageTransform:
    if crs is None:
        raise BadInputError(
            f"The control points of {unsigned(info.uri)} have no reference system.",
            "Assign it, for example with `gdal_translate -a_srs EPSG:… in.tif out.tif`.",
        )
    run = _Transformer(GCPTransformer(gcps))
    residual = _residual(run, gcps)
    if residual > _SPLINE_ABOVE_PX and len(gcps) <= _MOST_SPLINE_POINTS:
        run = _Transformer(GCPTransformer(gcps, tps=True))
        residual = _residual(run, gcps)
    reach, linear = _reach(run, info, 0.0)

    def forward(x: NDArray[np.float64], y: NDArray[np.float64]) -> Positions:
        return run.to_image(x, y, 0.0)

    def backward(cols: NDArray[np.float64], rows: NDArray[np.float64]) -> Positions:
        return run.to_map(cols, rows, 0.0)

    return ImageTransform("gcps", str(crs.to_wkt()), None, 0, residual, reach, forward, backward, linear)


class _Transformer:
    """One of GDAL's transformers, one thread at a time."""

    def __init__(self, transformer: RPCTransformer | GCPTransformer) -> None:
        self._transformer = transformer
        self._lock = threading.Lock()

    def to_image(self, x: NDArray[np.float64], y: NDArray[np.float64], height: float) -> Positions:
        with self._lock:
            rows, cols = self._transformer.rowcol(x, y, np.full(x.shape, height), op=np.positive)
        return np.asarray(cols, np.float64), np.asarray(rows, np.float64)

    def to_map(self, cols: NDArray[np.float64], rows: NDArray[np.float64], height: float) -> Positions:
        with self._lock:
            x, y = self._transformer.xy(rows, cols, np.full(rows.shape, height), offset="ul")
        return np.asarray(x, np.float64), np.asarray(y, np.float64)


def _reach(run: _Transformer, info: RasterInfo, height: float) -> tuple[Bounds, NDArray[np.float64]]:
    """The image's footprint with half its size around it, and how columns and rows grow with x and y."""
    cols, rows = (
        axis.ravel()
        for axis in np.meshgrid(np.linspace(0, info.width, _SAMPLES), np.linspace(0, info.height, _SAMPLES))
    )
    x, y = run.to_map(cols, rows, height)
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3:
        raise _unusable(info, "no position of the image can be found on the map")
    x, y, cols, rows = x[known], y[known], cols[known], rows[known]
    xmin, xmax, ymin, ymax = float(x.min()), float(x.max()), float(y.min()), float(y.max())
    wide, high = (xmax - xmin) / 2, (ymax - ymin) / 2
    if not (wide > 0 and high > 0):
        raise _unusable(info, "its footprint on the map is flat")
    middle = ((xmin + xmax) / 2, (ymin + ymax) / 2)
    # In units of half the footprint, so that degrees and metres are solved for equally well.
    design = np.column_stack([(x - middle[0]) / wide, (y - middle[1]) / high, np.ones(len(x))])
    solved = np.linalg.lstsq(design, np.column_stack([cols, rows]), rcond=None)[0]
    linear = solved[:2].T / np.array([wide, high])
    return (xmin - wide, ymin - high, xmax + wide, ymax + high), linear


def _residual(run: _Transformer, gcps: Sequence[GroundControlPoint]) -> float:
    found = run.to_image(np.array([p.x for p in gcps]), np.array([p.y for p in gcps]), 0.0)
    apart = np.hypot(found[0] - [p.col for p in gcps], found[1] - [p.row for p in gcps])
    return float(np.max(apart)) if np.isfinite(apart).all() else math.inf


def _lean(run: _Transformer, rpcs: RPC, height: float) -> tuple[float, float]:
    """By how many (columns, rows) the top of something as high as the RPCs' height scale is moved."""
    at: dict[str, Any] = {"x": np.array([float(rpcs.long_off)]), "y": np.array([float(rpcs.lat_off)])}
    low, top = (run.to_image(**at, height=level) for level in (height, height + float(rpcs.height_scale)))
    return float(top[0][0] - low[0][0]), float(top[1][0] - low[1][0])


def _quarters(cols: float, rows: float) -> int:
    """Quarters by which a picture is turned clockwise so that (cols, rows) points up."""
    if not (math.isfinite(cols) and math.isfinite(rows)) or math.hypot(cols, rows) < 1:
        return 0
    clockwise_from_up = math.degrees(math.atan2(cols, -rows))
    return round(-clockwise_from_up / 90) % 4


def _unusable(info: RasterInfo, reason: str) -> BadInputError:
    return BadInputError(
        f"The way from the map to the image that {unsigned(info.uri)} carries cannot be used: {reason}.",
        "Write its RPCs or control points again, or use MAP_SPACE with a georeferenced raster.",
    )
