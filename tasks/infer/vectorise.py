"""Polygons of a classified raster of any size, none of them cut at the border of a block.

Each block is turned into polygons by itself. Where a polygon reaches its block's border, the pixels along the
border are labelled with it; equal classes on both sides join two labels. Only polygons that are joined are
put together, and of them only their outer rings: a hole that a block sees whole stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, pairwise
from typing import Any

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

from tasks.imagery import Window
from tasks.infer.polygons import Geometries, without_collinear_vertices

BLOCK = 2048
# Little-endian, a polygon, the number of its rings (OGC 06-103r4, 8.2): what its rings follow.
_WKB_HEAD = np.dtype([("order", "u1"), ("kind", "<u4"), ("rings", "<u4")])
_WKB_POLYGON = 3
_LARGE = 2**17  # points

Read = Callable[[Window], NDArray[Any]]


@dataclass(frozen=True)
class Polygons:
    """Polygons in pixels, x = column, y = row: their closed rings one after the other.

    Whole numbers without an object for each ring are a third of what GEOS holds.

    Attributes:
        points: x, y of all rings.  # (points, 2)
        sizes: points of each ring, the first one again at its end.  # (rings,)
        counts: rings of each polygon, the outer one first.  # (polygons,)
        value: class value of each polygon.  # (polygons,)
    """

    points: NDArray[np.int32]
    sizes: NDArray[np.uint32]
    counts: NDArray[np.uint32]
    value: NDArray[np.int64]

    def geometry(self) -> Geometries:
        """The polygons for shapely.  # (polygons,)"""
        heads = _starts(self.counts)
        rings = _starts(self.sizes)
        large = rings[heads[1:]] - rings[heads[:-1]] > _LARGE
        made = np.empty(len(self.value), dtype=object)
        small = self.take(~large)
        made[~large] = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON,
            small.points.astype(np.float64),
            (_starts(small.sizes), _starts(small.counts)),
        )
        for index in np.flatnonzero(large).tolist():
            # A geometry made of geometries of its rings would be there twice.
            written = BytesIO()
            written.writelines(self._only(index, heads, rings).wkb())
            made[index] = shapely.from_wkb(written.getvalue())
        return made

    def wkb(self) -> Iterator[bytes]:
        """The polygons as little-endian well-known binary, one after the other, some rings at a time."""
        heads = np.zeros(len(self.sizes), np.uint32)
        heads[_starts(self.counts)[:-1]] = self.counts
        ends = np.cumsum(self.sizes, dtype=np.int64)
        cuts = np.searchsorted(ends, np.arange(0, len(self.points), _LARGE), side="right")
        for start, stop in pairwise([*cuts.tolist(), len(ends)]):
            if start < stop:
                points = self.points[ends[start] - self.sizes[start] : ends[stop - 1]]
                yield _encoded(points, self.sizes[start:stop], heads[start:stop])

    def take(self, which: NDArray[np.bool_]) -> Polygons:
        """Those of the polygons."""
        rings = np.repeat(which, self.counts)
        points = self.points[np.repeat(rings, self.sizes)]
        return Polygons(points, self.sizes[rings], self.counts[which], self.value[which])

    def _only(self, index: int, heads: NDArray[np.int64], rings: NDArray[np.int64]) -> Polygons:
        """One of the polygons, nothing copied; where its rings and their points begin is known."""
        first, end = heads[index : index + 2].tolist()
        one = slice(index, index + 1)
        return Polygons(
            self.points[rings[first] : rings[end]], self.sizes[first:end], self.counts[one], self.value[one]
        )


def polygons_of(
    read: Read, shape: tuple[int, int], *, nodata: int | None, block: int = BLOCK
) -> Iterator[Polygons]:
    """Polygons of equal neighbouring pixels (sharing an edge, not only a corner), holes included.

    Memory holds one block, one row of blocks' borders, and the polygons that still reach the next row, at
    eight bytes per vertex, and once more while such a polygon is put together.

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


def _starts(lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Where each of some stretches begins, and where the last one ends.  # (stretches + 1,)"""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _encoded(points: NDArray[np.int32], sizes: NDArray[np.uint32], heads: NDArray[np.uint32]) -> bytes:
    """Rings in well-known binary: number of points, x, y, x, y, …

    Args:
        points: of all rings.
        sizes: points of each ring.
        heads: where a ring is a polygon's first, that polygon's rings, and else 0.
    """
    words = np.empty(len(sizes) + 4 * len(points), "<u4")
    begin = np.arange(len(sizes)) + 4 * _starts(sizes)[:-1]
    of_points = np.ones(len(words), np.bool_)
    of_points[begin] = False
    words[begin] = sizes
    words[of_points] = points.astype("<f8").view("<u4").ravel()
    firsts = np.flatnonzero(heads)
    if not len(firsts):
        return words.tobytes()
    head = np.empty(len(firsts), _WKB_HEAD)
    head["order"], head["kind"], head["rings"] = 1, _WKB_POLYGON, heads[firsts]
    size = _WKB_HEAD.itemsize
    places = (4 * begin[firsts] + size * np.arange(len(firsts)))[:, None] + np.arange(size)
    written = np.empty(4 * len(words) + size * len(firsts), np.uint8)
    of_rings = np.ones(len(written), np.bool_)
    of_rings[places] = False
    written[places] = head.view(np.uint8).reshape(-1, size)
    written[of_rings] = words.view(np.uint8)
    return written.tobytes()


@dataclass(slots=True)
class _Piece:
    """A polygon that reaches a border of its block, or what several of them became.

    Attributes:
        shell: its outer ring.  # (points, 2)
        holes: its other rings, one after the other.  # each (points, 2)
        hole_sizes: points of each of them.  # each (rings,)
        row: of blocks that it was made in, or put together after; the first one is 1.
    """

    shell: NDArray[np.int32]
    holes: list[NDArray[np.int32]]
    hole_sizes: list[NDArray[np.uint32]]
    row: int


@dataclass
class _Joiner:
    # What belongs together, and its class value, by the lowest label; parents lead there from the others.
    groups: dict[int, list[_Piece]] = field(default_factory=dict)
    values: dict[int, int] = field(default_factory=dict)
    parents: dict[int, int] = field(default_factory=dict)
    # Labels along the lower borders of the blocks above, and along the right border of the block before.
    above: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    below: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    before: NDArray[np.int64] | None = None
    made: int = 0
    row: int = 1

    def add(
        self, window: Window, values: NDArray[Any], nodata: int | None, last: tuple[bool, bool]
    ) -> Polygons:
        """Take one block; the polygons that no border touches."""
        found = _traced(window, values, nodata)
        heads, rings = _starts(found.counts)[:-1], _starts(found.sizes)[:-1]
        shells = rings[heads]
        touches = np.zeros(len(found.value), np.bool_)
        for axis, border, there in (
            (0, window.col, window.col > 0),
            (1, window.row, window.row > 0),
            (0, window.col_stop, not last[1]),
            (1, window.row_stop, not last[0]),
        ):
            if there and len(shells):
                # A hole reaches no border that the ring around it does not.
                touches |= np.logical_or.reduceat(found.points[:, axis] == border, shells)
        edges = _Edges.of(window)
        for index in np.flatnonzero(touches).tolist():
            first, count = int(heads[index]), int(found.counts[index])
            sizes = found.sizes[first : first + count]
            begin = int(shells[index])
            shell, end = begin + int(sizes[0]), begin + int(sizes.sum())
            self.made += 1
            # Copies: a view would keep the whole block.
            self.groups[self.made] = [
                _Piece(
                    found.points[begin:shell].copy(),
                    [found.points[shell:end].copy()] if count > 1 else [],
                    [sizes[1:].copy()] if count > 1 else [],
                    self.row,
                )
            ]
            self.values[self.made] = int(found.value[index])
            self.parents[self.made] = self.made
            edges.label(found.points[begin:shell], self.made)
        if window.col > 0 and self.before is not None:
            self._join(self.before, edges.left)
        if window.row > 0:
            self._join(self.above[window.col], edges.top)
        self.before = None if last[1] else edges.right
        if not last[0]:
            self.below[window.col] = edges.bottom
        return found.take(~touches)

    def closed(self) -> Polygons:
        """At the end of a row of blocks: the joined polygons that do not reach the next one."""
        self.above, self.below = {col: self._roots(labels) for col, labels in self.below.items()}, {}
        on = {label for labels in self.above.values() for label in np.unique(labels).tolist()}
        points, sizes = [np.empty((0, 2), np.int32)], [np.empty(0, np.uint32)]
        counts, values = [], []
        for root in [root for root in self.groups if root not in on]:
            [one] = _joined(self.groups.pop(root), self.row)
            values.append(self.values.pop(root))
            points += [one.shell, *one.holes]
            sizes += [np.array([len(one.shell)], np.uint32), *one.hole_sizes]
            counts.append(1 + sum(len(rings) for rings in one.hole_sizes))
        # GEOS takes some 340 bytes per vertex that it joins. What is closed takes no more part in it, so that
        # rows are joined by two, by four, by eight: each vertex a few times, and never many at once.
        since = self.row - (self.row & -self.row)
        for root, pieces in self.groups.items():
            young = [piece for piece in pieces if piece.row > since]
            if len(young) > 1:
                old = [piece for piece in pieces if piece.row <= since]
                self.groups[root] = [*old, *_joined(young, self.row)]
        self.parents = {root: root for root in self.groups}
        self.row += 1
        return Polygons(
            np.concatenate(points),
            np.concatenate(sizes),
            np.array(counts, np.uint32),
            np.array(values, np.int64),
        )

    def _roots(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The labels' roots; 0 stays."""
        known, which = np.unique(labels, return_inverse=True)
        return np.array([self._root(label) if label else 0 for label in known.tolist()])[which]

    def _join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        both = (one != 0) & (other != 0)
        for labels in np.unique(np.column_stack([one[both], other[both]]), axis=0).tolist():
            first, second = sorted(map(self._root, labels))
            if first != second and self.values[first] == self.values[second]:
                self.parents[second] = first
                self.groups[first] += self.groups.pop(second)
                del self.values[second]

    def _root(self, label: int) -> int:
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label


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

    def label(self, ring: NDArray[np.int32], label: int) -> None:
        """Write ``label`` along the stretches of a closed ring that lie on a border."""
        points = ring - np.array((self.window.col, self.window.row), np.int32)
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


def _traced(window: Window, values: NDArray[Any], nodata: int | None) -> Polygons:
    """Polygons of one block."""
    usable = values
    if values.dtype.name not in ("int16", "int32", "uint8", "uint16"):
        usable = values.astype(np.int32)
    mask = None if nodata is None else values != nodata
    rings: list[list[tuple[float, float]]] = []
    counts, found = [], []
    if mask is None or mask.any():
        for shape, value in rasterio.features.shapes(usable, mask=mask):
            rings.extend(shape["coordinates"])
            counts.append(len(shape["coordinates"]))
            found.append(int(value))
    sizes = np.array([len(ring) for ring in rings], np.uint32)
    points = np.fromiter(
        chain.from_iterable(chain.from_iterable(rings)), np.float64, count=2 * int(sizes.sum())
    ).reshape(-1, 2)
    in_raster = points.astype(np.int32) + np.array((window.col, window.row), np.int32)
    return Polygons(in_raster, sizes, np.array(counts, np.uint32), np.array(found, np.int64))


def _joined(pieces: list[_Piece], row: int) -> list[_Piece]:
    """What the pieces make together; several, where a later row alone joins them.

    Only outer rings are joined: no border touches the holes, whichever piece they are kept with.
    """
    if len(pieces) == 1:
        return pieces
    united = shapely.get_parts(shapely.union_all([shapely.Polygon(piece.shell) for piece in pieces]))
    # Only these rings run along borders: the holes of the pieces are as they were traced.
    made = []
    for polygon in without_collinear_vertices(united):
        _, points, (starts, _) = shapely.to_ragged_array([polygon])
        rings, sizes = points.astype(np.int32), np.diff(starts).astype(np.uint32)
        shell = int(sizes[0])
        made.append(_Piece(rings[:shell], [rings[shell:]], [sizes[1:]], row))
    made[0].holes += [points for piece in pieces for points in piece.holes]
    made[0].hole_sizes += [sizes for piece in pieces for sizes in piece.hole_sizes]
    return made
