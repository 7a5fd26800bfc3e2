"""Labels seen through a pixel grid: which label lies where, as boxes and as burnt class values.

All answers are in pixels of the grid (x right, y down, origin at the outer corner of the upper-left
pixel), and none depends on how the grid is cut into windows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine

from tasks.imagery.places import Place
from tasks.imagery.windows import Window
from tasks.labels.burning import burn_polygons
from tasks.labels.schema import ClassSchema
from tasks.labels.vector import VectorLabels

Box = tuple[float, float, float, float]

# Coordinates are rounded to this fraction of a pixel, a power of two: moving the origin by whole pixels
# is then exact, so that a label has the same box and area in whatever chip it lies.
_FRACTION = 1.0 / 65536.0
# What is thinner inside a window does not count there: its box, written with two decimals, could be empty.
_LEAST_SIDE_PX = 0.02


def _no_parts() -> npt.NDArray[np.object_]:
    raise ValueError("Whoever found these labels did not keep their polygons.")


@dataclass(frozen=True)
class LabelsInWindow:
    """The labels of one window or chip, in label order.

    Attributes:
        indices: (n,) which labels: the numbers of their records.
        values: (n,) class values.
        boxes: (n, 4) xmin, ymin, xmax, ymax of the part inside, pixels from the upper-left corner.
        areas: (n,) area of the part inside, squared pixels.
        left_out: labels that share an area with the window, but too small a share of their own.
        parts: makes ``polygons``.
    """

    indices: npt.NDArray[np.intp]
    values: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    left_out: npt.NDArray[np.intp]
    parts: Callable[[], npt.NDArray[np.object_]] = field(default=_no_parts, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def polygons(self) -> npt.NDArray[np.object_]:
        """(n,) the part of each label that lies inside, in the pixels that ``boxes`` are in."""
        return self.parts()


@dataclass(frozen=True)
class PixelLabels:
    """Vector labels in the pixel coordinates of one grid.

    Attributes:
        geometries: (features,) shapely polygons, pixel coordinates.
        values: (features,) int64 class values.
        schema: the classes.
        records: (features,) ascending numbers by which labels are named; the labels' own positions if None.
    """

    geometries: npt.NDArray[np.object_]
    values: npt.NDArray[np.int64]
    schema: ClassSchema
    records: npt.NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.geometries)

    @cached_property
    def tree(self) -> shapely.STRtree:
        """The spatial index."""
        return shapely.STRtree(self.geometries)

    @cached_property
    def numbers(self) -> npt.NDArray[np.intp]:
        """(features,) by which number each label is named."""
        return np.arange(len(self.geometries)) if self.records is None else self.records

    @cached_property
    def _bounds(self) -> npt.NDArray[np.float64]:
        return shapely.bounds(self.geometries).reshape(-1, 4)

    @cached_property
    def _areas(self) -> npt.NDArray[np.float64]:
        areas: npt.NDArray[np.float64] = shapely.area(self.geometries)
        return areas

    @cached_property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest unsigned integer type that holds every class value."""
        return np.dtype(np.min_scalar_type(max(self.schema.values, default=1)))

    def at(self, places: Sequence[Place], *, min_overlap_ratio: float = 0.0) -> list[LabelsInWindow]:
        """For each chip the labels that share an area with it, in the chip's own pixels.

        Args:
            places: where the chips lie, at any angle.
            min_overlap_ratio: a label counts only if at least this share of its area lies inside
                (area of label and chip over area of label).
        """
        found: list[LabelsInWindow | None] = [None] * len(places)
        straight = [index for index, place in enumerate(places) if place.is_exact]
        windows = np.array([_edges(places[index].window) for index in straight], dtype=np.int64)
        for index, inside in zip(
            straight, self.in_windows(windows, min_overlap_ratio=min_overlap_ratio), strict=True
        ):
            found[index] = _turned(inside, places[index])
        turned = [index for index, place in enumerate(places) if not place.is_exact]
        for index, inside in zip(
            turned, self._in_frames([places[index] for index in turned], min_overlap_ratio), strict=True
        ):
            found[index] = inside
        return [item for item in found if item is not None]

    def in_windows(
        self, windows: npt.NDArray[np.int64], *, min_overlap_ratio: float = 0.0
    ) -> list[LabelsInWindow]:
        """For each window the labels that share an area with it.

        Args:
            windows: (n, 4) row, col, rows, cols.
            min_overlap_ratio: a label counts only if at least this share of its area lies inside
                (area of label and window over area of label).
        """
        windows = np.asarray(windows, dtype=np.int64).reshape(-1, 4)
        row, col, rows, cols = windows.T
        edges = np.column_stack([col, row, col + cols, row + rows]).astype(np.float64)
        frames = np.asarray(shapely.box(*edges.T), dtype=object)
        which, label = self._pairs(frames)
        shapes = self.geometries[label]
        return self._inside(which, label, shapes, edges, min_overlap_ratio)

    def _in_frames(self, places: Sequence[Place], min_overlap_ratio: float) -> list[LabelsInWindow]:
        """As :meth:`in_windows`, for chips whose pixels are not the grid's: labels move into the chip."""
        frames = np.array([shapely.Polygon(place.corners) for place in places], dtype=object)
        which, label = self._pairs(frames)
        inverse = np.array([(~place.to_grid)[:6] for place in places], dtype=np.float64).reshape(-1, 6)
        shapes = _moved(self.geometries[label], inverse[which])
        edges = np.array([(0, 0, place.cols, place.rows) for place in places], dtype=np.float64).reshape(
            -1, 4
        )
        return self._inside(which, label, shapes, edges, min_overlap_ratio)

    def _pairs(self, frames: npt.NDArray[np.object_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Which frame touches which label, ordered by frame, then label."""
        which, label = self.tree.query(frames, predicate="intersects")
        order = np.lexsort((label, which))
        return which[order], label[order]

    def _inside(
        self,
        which: npt.NDArray[np.intp],
        label: npt.NDArray[np.intp],
        shapes: npt.NDArray[np.object_],
        edges: npt.NDArray[np.float64],
        min_overlap_ratio: float,
    ) -> list[LabelsInWindow]:
        """Cut labels to the rectangles they were found for.

        Args:
            which: (pairs,) rectangles, ascending.
            label: (pairs,) labels.
            shapes: (pairs,) the labels' polygons in the rectangle's coordinates.
            edges: (rectangles, 4) xmin, ymin, xmax, ymax.
        """
        bounds, outer = shapely.bounds(shapes).reshape(-1, 4), edges[which]
        areas = self._areas[label].copy()
        cut = (bounds[:, :2] < outer[:, :2]).any(axis=1) | (bounds[:, 2:] > outer[:, 2:]).any(axis=1)
        if cut.any():
            frames = np.asarray(shapely.box(*edges.T), dtype=object)
            parts = _areal(np.asarray(shapely.intersection(shapes[cut], frames[which[cut]])))
            areas[cut] = shapely.area(parts)
            bounds[cut] = shapely.bounds(parts)
            shapes[cut] = parts
        inside = (areas > 0) & (bounds[:, 2:] - bounds[:, :2] >= _LEAST_SIDE_PX).all(axis=1)
        kept = inside & (areas >= min_overlap_ratio * self._areas[label])
        size = outer[:, 2:] - outer[:, :2]
        boxes = np.clip(bounds - np.tile(outer[:, :2], 2), 0, np.tile(size, 2))
        starts = np.searchsorted(which, np.arange(len(edges) + 1))
        found = []
        for index, (start, stop) in enumerate(pairwise(starts)):
            here = slice(start, stop)
            mine = label[here]
            keep = kept[here]
            found.append(
                LabelsInWindow(
                    indices=self.numbers[mine[keep]],
                    values=self.values[mine[keep]],
                    boxes=boxes[here][keep],
                    areas=areas[here][keep],
                    left_out=self.numbers[mine[inside[here] & ~keep]],
                    parts=partial(_shifted, shapes[here][keep], edges[index, 0], edges[index, 1]),
                )
            )
        return found

    def in_window(
        self, row: int, col: int, rows: int, cols: int, *, min_overlap_ratio: float = 0.0
    ) -> LabelsInWindow:
        """The labels that share an area with one window; see :meth:`in_windows`."""
        return self.in_windows(np.array([[row, col, rows, cols]]), min_overlap_ratio=min_overlap_ratio)[0]

    def burn(
        self, row: int, col: int, rows: int, cols: int, *, leave_out: Collection[int] = ()
    ) -> npt.NDArray[np.unsignedinteger]:
        """Class values of the window's pixels, 0 where there is no label.

        A pixel belongs to a label if its centre lies inside; where labels overlap the later record wins.

        Args:
            leave_out: numbers of labels that are not burnt.

        Returns:
            array  # (rows, cols), dtype as ``self.dtype``
        """
        chosen = np.ones(len(self), dtype=bool)
        if leave_out:
            chosen = ~np.isin(self.numbers, list(leave_out))
        return self._burn_window(Window(row, col, rows, cols), chosen, self.values, self.dtype)

    def burn_at(self, place: Place, *, leave_out: Collection[int] = ()) -> npt.NDArray[np.unsignedinteger]:
        """Class values of a chip's pixels, as :meth:`burn`.

        A chip turned by quarters holds the grid's own pixels; for others the labels are burnt in the
        chip's frame.

        Returns:
            array  # (place.rows, place.cols), dtype as ``self.dtype``
        """
        chosen = np.ones(len(self), dtype=bool)
        if leave_out:
            chosen = ~np.isin(self.numbers, list(leave_out))
        return self._burn_place(place, chosen, self.values, self.dtype)

    def instances_at(
        self, place: Place, found: LabelsInWindow, value: int
    ) -> npt.NDArray[np.unsignedinteger]:
        """To which object of a class each pixel of a chip belongs: 1, 2, 3 … in label order, 0 for none.

        Objects of other classes do not cover; of the class's own the later lies on top. Numbers have no
        gaps: an object without a pixel of its own gets none.

        Args:
            place: the chip.
            found: its objects, from :meth:`at`.
            value: the class.

        Returns:
            array  # (place.rows, place.cols), uint8, uint16 or uint32, by the number of objects
        """
        mine = found.indices[found.values == value]
        label = np.searchsorted(self.numbers, mine)
        order = np.zeros(len(self), dtype=np.int64)
        order[label] = np.arange(1, len(mine) + 1)
        burnt = self._burn_place(place, order > 0, order, np.dtype(np.uint32))
        seen = np.bincount(burnt.ravel(), minlength=len(mine) + 1) > 0
        seen[0] = False
        numbers = np.where(seen, np.cumsum(seen), 0)
        numbered: npt.NDArray[np.unsignedinteger] = numbers.astype(np.min_scalar_type(seen.sum()))[burnt]
        return numbered

    def _burn_place(
        self,
        place: Place,
        chosen: npt.NDArray[np.bool_],
        values: npt.NDArray[np.int64],
        dtype: np.dtype[np.unsignedinteger],
    ) -> npt.NDArray[np.unsignedinteger]:
        if place.is_exact:
            return np.rot90(self._burn_window(place.window, chosen, values, dtype), -place.quarters)
        _, label = self._pairs(np.array([shapely.Polygon(place.corners)], dtype=object))
        label = label[chosen[label]]
        inverse = np.tile(np.array((~place.to_grid)[:6], dtype=np.float64), (len(label), 1))
        shapes = _moved(self.geometries[label], inverse)
        return burn_polygons(shapes, values[label], Window(0, 0, place.rows, place.cols), dtype)

    def _burn_window(
        self,
        window: Window,
        chosen: npt.NDArray[np.bool_],
        values: npt.NDArray[np.int64],
        dtype: np.dtype[np.unsignedinteger],
    ) -> npt.NDArray[np.unsignedinteger]:
        frame = shapely.box(window.col, window.row, window.col_stop, window.row_stop)
        label = np.sort(self.tree.query(frame, predicate="intersects"))
        label = label[chosen[label]]
        return burn_polygons(self.geometries[label], values[label], window, dtype)


def labels_on_grid(labels: VectorLabels, transform: Sequence[float]) -> PixelLabels:
    """The labels in the pixel coordinates of a grid in the labels' CRS; numbers are positions in ``labels``.

    Args:
        transform: (a, b, c, d, e, f) of the grid, pixel to map.
    """
    geometries = on_grid(labels.geometries, transform)
    keep = shapely.area(geometries) > 0
    return PixelLabels(geometries[keep], labels.values[keep], labels.schema, np.flatnonzero(keep))


def on_grid(geometries: npt.NDArray[np.object_], transform: Sequence[float]) -> npt.NDArray[np.object_]:
    """Polygons in the pixel coordinates of a grid, rounded so that moving the origin is exact; valid.

    One that is smaller than the rounding comes out without an area.

    Args:
        geometries: (n,) in the grid's CRS.
        transform: (a, b, c, d, e, f) of the grid, pixel to map.
    """
    inverse = ~Affine(*transform)

    def move(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x = inverse.a * points[:, 0] + inverse.b * points[:, 1] + inverse.c
        y = inverse.d * points[:, 0] + inverse.e * points[:, 1] + inverse.f
        return np.column_stack([np.round(x / _FRACTION) * _FRACTION, np.round(y / _FRACTION) * _FRACTION])

    moved = np.asarray(shapely.transform(geometries, move), dtype=object)
    bad = ~shapely.is_valid(moved)
    if bad.any():
        # Rounding can make a ring touch itself; a label below the rounding vanishes.
        moved[bad] = shapely.make_valid(moved[bad], method="structure", keep_collapsed=False)
    return moved


def _edges(window: Window) -> tuple[int, int, int, int]:
    return window.row, window.col, window.rows, window.cols


def _turned(found: LabelsInWindow, place: Place) -> LabelsInWindow:
    """What lies in the window around a chip that is turned by quarters, in the chip's pixels."""
    if place.quarters == 0:
        return found
    rows, cols = place.window.shape
    xmin, ymin, xmax, ymax = found.boxes.T
    boxes, turn = {
        1: ((rows - ymax, xmin, rows - ymin, xmax), (0, -1, rows, 1, 0, 0)),
        2: ((cols - xmax, rows - ymax, cols - xmin, rows - ymin), (-1, 0, cols, 0, -1, rows)),
        3: ((ymin, cols - xmax, ymax, cols - xmin), (0, 1, 0, -1, 0, cols)),
    }[place.quarters]

    def parts() -> npt.NDArray[np.object_]:
        coefficients = np.tile(np.array(turn, dtype=np.float64), (len(found), 1))
        return _moved(found.polygons, coefficients)

    return replace(found, boxes=np.column_stack(boxes), parts=parts)


def _moved(
    geometries: npt.NDArray[np.object_], coefficients: npt.NDArray[np.float64]
) -> npt.NDArray[np.object_]:
    """Each geometry through an affine transform of its own  # coefficients (n, 6): a, b, c, d, e, f."""
    points, index = shapely.get_coordinates(geometries, return_index=True)
    a, b, c, d, e, f = coefficients[index].T
    x, y = points.T
    # set_coordinates writes into the array that it is given.
    moved: npt.NDArray[np.object_] = shapely.set_coordinates(
        geometries.copy(), np.column_stack([a * x + b * y + c, d * x + e * y + f])
    )
    return moved


def _shifted(geometries: npt.NDArray[np.object_], left: float, top: float) -> npt.NDArray[np.object_]:
    if left == 0 and top == 0:
        return geometries
    coefficients = np.tile(np.array((1, 0, -left, 0, 1, -top), dtype=np.float64), (len(geometries), 1))
    return _moved(geometries, coefficients)


def _areal(geometries: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Without the lines and points that an intersection leaves where a label only touches the window."""
    for index in np.flatnonzero(shapely.get_type_id(geometries) == shapely.GeometryType.GEOMETRYCOLLECTION):
        parts = shapely.get_parts(geometries[index])
        geometries[index] = shapely.union_all(parts[shapely.get_dimensions(parts) == 2])
    return geometries
