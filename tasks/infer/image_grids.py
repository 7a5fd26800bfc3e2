"""Where the grids of a plan lie on the map; those in pixel space by each raster's own way there.

A grid without coordinate system is a raw image: computed as it lies in its file (``use_pixelspace``), its
objects are carried onto the map by the raster's RPCs, control points or affine, see
``tasks.imagery.image_space``; its classes by ``tasks.infer.image_rasters``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from tasks.errors import BadInputError
from tasks.imagery import Bounds, RasterInfo
from tasks.imagery.collection import grid_of_raster, same_crs
from tasks.imagery.image_space import ImageTransform, image_transform, in_pixel_space
from tasks.infer.parameters import ClassifyPixelsParameters, InferenceTool
from tasks.infer.planned import MapGrid, Plan, PlannedGrid

_AT_ONCE = 16
_Answer = TypeVar("_Answer")
EDGE_POINTS = 21


def in_image_space(parameters: InferenceTool) -> bool:
    """Whether a tool works on raw images."""
    return bool(getattr(parameters, "use_pixelspace", False))


def seen_as(parameters: InferenceTool, rasters: Sequence[RasterInfo]) -> list[RasterInfo]:
    """The rasters as the package sees them: raw images have no cell size on the ground."""
    return [in_pixel_space(info) for info in rasters] if in_image_space(parameters) else list(rasters)


def image_grid(name: str, number: int, info: RasterInfo, on_map: MapGrid | None = None) -> PlannedGrid:
    """The grid of a raw image, the one raster of its grid; ``on_map``: where its classes come to lie."""
    grid = grid_of_raster(in_pixel_space(info), map_space=False)
    whole = (0, 0, grid.rows, grid.cols)
    return PlannedGrid(
        name=name,
        crs_wkt="",
        transform=grid.transform,
        rows=grid.rows,
        cols=grid.cols,
        region=whole,
        rasters=[number],
        footprints=[whole],
        on_map=on_map,
    )


def check_image_space(parameters: InferenceTool, rasters: Sequence[RasterInfo], *, apart: bool) -> None:
    """Refuse what pixel space has no meaning for, and images whose objects would lie nowhere.

    Raises:
        BadInputError: naming the parameter or the raster.
    """
    for name in ("cell_size", "extent", "snap_raster", "mask"):
        if getattr(parameters, name) is not None:
            raise BadInputError(
                f"{name} means nothing in pixel space.", "Leave it out, or set use_pixelspace to false."
            )
    if len(rasters) > 1 and not apart:
        raise BadInputError(
            f"{len(rasters)} rasters cannot share one pixel space.",
            "Process the rasters separately (PROCESS_ITEMS_SEPARATELY), or work in map space.",
        )
    # A classified image may stay as it lies in its file; objects need the map.
    if not isinstance(parameters, ClassifyPixelsParameters):
        each_image(way_of, rasters)


def each_image(ask: Callable[[RasterInfo], _Answer], rasters: Sequence[RasterInfo]) -> list[_Answer]:
    """What each image says, in order; many are asked at once, since each may be a round trip."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(ask, rasters))


def read_as(planned: PlannedGrid, infos: Sequence[RasterInfo]) -> list[RasterInfo]:
    """The rasters as a reader of the grid takes them."""
    return list(infos) if planned.crs_wkt else [in_pixel_space(info) for info in infos]


def map_crs(plan: Plan, planned: PlannedGrid) -> str:
    """The coordinate system of a grid's results, as WKT."""
    return planned.crs_wkt or _way_of(plan, planned).crs_wkt


def to_map(plan: Plan, planned: PlannedGrid, geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Geometries in pixels of a grid, on the map, in :func:`map_crs`."""
    if planned.crs_wkt:
        a, _, c, _, e, f = planned.transform
        scale, origin = np.array([a, e]), np.array([c, f])
        mapped: NDArray[np.object_] = shapely.transform(geometry, lambda points: origin + points * scale)
        return mapped
    way = _way_of(plan, planned)
    carried: NDArray[np.object_] = shapely.transform(
        geometry, lambda points: np.column_stack(way.to_map(points[:, 0], points[:, 1]))
    )
    return carried


def in_picture(
    plan: Plan, planned: PlannedGrid, geometry: NDArray[np.object_], crs_wkt: str
) -> NDArray[np.object_]:
    """Geometries of a raw image's layer in the image's own coordinates: x = column, y = minus the row."""
    way = _way_of(plan, planned)
    project = None
    if not same_crs(crs_wkt, way.crs_wkt):
        project = pyproj.Transformer.from_crs(crs_wkt, way.crs_wkt, always_xy=True)

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = points.T if project is None else project.transform(points[:, 0], points[:, 1])
        cols, rows = way.to_image(x, y)
        return np.column_stack([cols, -rows])

    moved: NDArray[np.object_] = shapely.transform(geometry, move)
    return moved


def map_bounds(plan: Plan, planned: PlannedGrid) -> Bounds:
    """(xmin, ymin, xmax, ymax) of what is computed of a grid, in :func:`map_crs`."""
    if planned.crs_wkt:
        return planned.output_grid.bounds
    outline = shapely.segmentize(
        shapely.box(0, 0, planned.cols, planned.rows), max(planned.cols, planned.rows) / EDGE_POINTS
    )
    xmin, ymin, xmax, ymax = shapely.total_bounds(to_map(plan, planned, np.array([outline], dtype=object)))
    return float(xmin), float(ymin), float(xmax), float(ymax)


def _way_of(plan: Plan, planned: PlannedGrid) -> ImageTransform:
    return way_of(plan.rasters[planned.rasters[0]])


@lru_cache(maxsize=256)
def way_of(info: RasterInfo) -> ImageTransform:
    """An image's own way to the map, see :func:`tasks.imagery.image_space.image_transform`."""
    return image_transform(info)
