"""Polygons of a classified raster of any size, none of them cut at the border of a block.

Each block is turned into polygons by itself. Where a polygon reaches its block's border, the pixels along the
border are labelled with it; equal classes on both sides join two labels. Only polygons that are joined are
put together, and of them only their outer rings: a hole that a block sees whole stays as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain
from typing import Any

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

from tasks.imagery import Window
from tasks.infer.polygons import Geometries, without_collinear_vertices

BLOCK = 2048
_WKB_POLYGON = 3

Read = Callable[[Window], NDArray[Any]]


@dataclass(frozen=True)
class Polygons:
    """Polygons in pixels, x = column, y = row, and the class value of each."""

    geometry: Geometries
    value: NDArray[np.int64]


def polygons_of(
    read: Read, shape: tuple[int, int], *, nodata: int | None, block: int = BLOCK
) -> Iterator[Polygons]:
    """Polygons of equal neighbouring pixels (sharing an edge, not only a corner), holes included.

    Memory holds one block, one row of blocks' borders, and the polygons that still reach the next row: their
    holes at eight bytes per vertex, and once more at sixteen, and as a geometry, when such a polygon is put
    together.

    Args:
        read: the class values of a window, (rows, cols), integers.
        shape: (rows, cols) of the raster.
        nodata: value that makes no polygon; None: every value does.
        block: edge of the blocks, px; it changes no polygon.
    """
    rows, cols = shape
    joiner = _Joiner()
    for top in range(0, rows, block):
        height = min(block, rows - top)
        for left in range(0, cols, block):
            window = Window(top, left, height, min(block, cols - left))
            yield joiner.add(
                window, read(window), nodata, last=(window.row_stop == rows, window.col_stop == cols)
            )
        yield joiner.closed()


@dataclass(frozen=True)
class _Rings:
    """Closed rings, one after the other, in half the memory of a geometry's and without an object for each.

    Attributes:
        points: x, y in pixels, whole numbers.  # (points, 2)
        sizes: points of each ring.  # (rings,)
    """

    points: NDArray[np.int32]
    sizes: NDArray[np.uint32]

    @staticmethod
    def of(polygon: shapely.Polygon) -> _Rings:
        """The outer ring, then the holes."""
        _, points, (starts, _) = shapely.to_ragged_array([polygon])
        return _Rings(points.astype(np.int32), np.diff(starts).astype(np.uint32))

    def holes(self) -> _Rings:
        """All but the first ring."""
        return _Rings(self.points[self.sizes[0] :].copy(), self.sizes[1:])

    def wkb(self) -> bytes:
        """As they follow each other in a polygon's well-known binary: number of points, x, y, x, y, …"""
        words = np.empty(len(self.sizes) + 4 * len(self.points), "<u4")
        heads = np.arange(len(self.sizes)) + 4 * (np.cumsum(self.sizes, dtype=np.int64) - self.sizes)
        of_points = np.ones(len(words), np.bool_)
        of_points[heads] = False
        words[heads] = self.sizes
        words[of_points] = self.points.astype("<f8").view("<u4").ravel()
        return words.tobytes()


@dataclass
class _Piece:
    """A polygon that reaches a border of its block; ``parent`` leads to what it is joined to."""

    shell: shapely.Polygon
    holes: _Rings
    value: int
    parent: int


@dataclass
class _Joiner:
    pieces: dict[int, _Piece] = field(default_factory=dict)
    # Labels along the lower borders of the blocks above, and along the right border of the block before.
    above: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    below: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    before: NDArray[np.int64] | None = None
    made: int = 0

    def add(
        self, window: Window, values: NDArray[Any], nodata: int | None, last: tuple[bool, bool]
    ) -> Polygons:
        """Take one block; the polygons that no border touches."""
        geometry, found = _traced(values, nodata)
        if len(geometry):
            offset = np.array((window.col, window.row))
            geometry = shapely.transform(geometry, lambda points: points + offset)
        bounds = shapely.bounds(geometry).reshape(-1, 4)
        touches = (
            ((bounds[:, 0] == window.col) & (window.col > 0))
            | ((bounds[:, 1] == window.row) & (window.row > 0))
            | ((bounds[:, 2] == window.col_stop) & (not last[1]))
            | ((bounds[:, 3] == window.row_stop) & (not last[0]))
        )
        edges = _Edges.of(window)
        for index in np.flatnonzero(touches).tolist():
            self._register(geometry[index], int(found[index]), edges)
        if window.col > 0 and self.before is not None:
            self._join(self.before, edges.left)
        if window.row > 0:
            self._join(self.above[window.col], edges.top)
        self.before = None if last[1] else edges.right
        if not last[0]:
            self.below[window.col] = edges.bottom
        return Polygons(geometry[~touches], found[~touches])

    def closed(self) -> Polygons:
        """At the end of a row of blocks: the joined polygons that do not reach the next one."""
        groups: dict[int, list[int]] = {}
        for label in self.pieces:
            groups.setdefault(self._root(label), []).append(label)
        on = {
            self._root(label)
            for labels in self.below.values()
            for label in np.unique(labels).tolist()
            if label
        }
        self.above, self.below = self.below, {}
        geometry, values = [], []
        for root, members in groups.items():
            if root in on:
                continue
            values.append(self.pieces[root].value)
            geometry.append(_united([self.pieces.pop(label) for label in members]))
        made = np.array(geometry, dtype=object)
        return Polygons(made, np.array(values, np.int64))

    def _register(self, polygon: shapely.Polygon, value: int, edges: _Edges) -> None:
        self.made += 1
        holes = _Rings.of(polygon).holes()
        shell = shapely.Polygon(polygon.exterior) if len(holes.sizes) else polygon
        self.pieces[self.made] = _Piece(shell, holes, value, self.made)
        edges.label(shapely.get_coordinates(polygon.exterior), self.made)

    def _join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        both = (one != 0) & (other != 0)
        for first, second in np.unique(np.column_stack([one[both], other[both]]), axis=0).tolist():
            if self.pieces[first].value == self.pieces[second].value:
                self._unite(first, second)

    def _root(self, label: int) -> int:
        while self.pieces[label].parent != label:
            self.pieces[label].parent = self.pieces[self.pieces[label].parent].parent
            label = self.pieces[label].parent
        return label

    def _unite(self, first: int, second: int) -> None:
        one, other = sorted((self._root(first), self._root(second)))
        self.pieces[other].parent = one


@dataclass(frozen=True)
class _Edges:
    """Labels of the pixels along a block's four borders; 0 where none was given."""

    window: Window
    top: NDArray[np.int64]
    bottom: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]

    @staticmethod
    def of(window: Window) -> _Edges:
        across, down = np.zeros(window.cols, np.int64), np.zeros(window.rows, np.int64)
        return _Edges(window, across, across.copy(), down, down.copy())

    def label(self, ring: NDArray[np.float64], label: int) -> None:
        """Write ``label`` along the stretches of a closed ring that lie on a border."""
        points = ring.astype(np.int64) - (self.window.col, self.window.row)
        start, stop = points[:-1], points[1:]
        for axis, place, border in (
            (1, 0, self.top),
            (1, self.window.rows, self.bottom),
            (0, 0, self.left),
            (0, self.window.cols, self.right),
        ):
            along = (start[:, axis] == place) & (stop[:, axis] == place)
            stretches = np.sort(np.column_stack([start[along, 1 - axis], stop[along, 1 - axis]]), axis=1)
            for first, end in stretches.tolist():
                border[first:end] = label


def _traced(values: NDArray[Any], nodata: int | None) -> tuple[Geometries, NDArray[np.int64]]:
    """Polygons of one block in its own pixels, and their values."""
    usable = values
    if values.dtype.name not in ("int16", "int32", "uint8", "uint16"):
        usable = values.astype(np.int32)
    mask = None if nodata is None else values != nodata
    if mask is not None and not mask.any():
        return np.empty(0, dtype=object), np.empty(0, np.int64)
    rings: list[list[tuple[float, float]]] = []
    ring_counts, found = [], []
    for shape, value in rasterio.features.shapes(usable, mask=mask):
        rings.extend(shape["coordinates"])
        ring_counts.append(len(shape["coordinates"]))
        found.append(int(value))
    sizes = np.array([len(ring) for ring in rings])
    points = np.fromiter(
        chain.from_iterable(chain.from_iterable(rings)), np.float64, count=2 * int(sizes.sum())
    ).reshape(-1, 2)
    offsets = (np.concatenate([[0], np.cumsum(sizes)]), np.concatenate([[0], np.cumsum(ring_counts)]))
    made = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, offsets)
    return made, np.array(found, np.int64)


def _united(pieces: list[_Piece]) -> shapely.Polygon:
    """One polygon of pieces that share borders; the list is used up, so that no hole is held twice."""
    outline = pieces[0].shell
    if len(pieces) > 1:
        joined = shapely.union_all([piece.shell for piece in pieces])
        assert isinstance(joined, shapely.Polygon), "pieces that share borders make one polygon"
        # Only this outline runs along borders: the holes of the pieces are as they were traced.
        outline = without_collinear_vertices(np.array([joined], dtype=object))[0]
    inside = sum(len(piece.holes.sizes) for piece in pieces)
    if not inside:
        return outline
    rings = _Rings.of(outline)
    written = BytesIO()
    # Little-endian, a polygon, the number of its rings (OGC 06-103r4, 8.2).
    written.write(struct.pack("<BII", 1, _WKB_POLYGON, len(rings.sizes) + inside))
    written.write(rings.wkb())
    pieces.reverse()
    while pieces:
        written.write(pieces.pop().holes.wkb())
    whole = shapely.from_wkb(written.getvalue())
    assert isinstance(whole, shapely.Polygon)
    return whole
