"""Which places of a cell could become chips, in the order of their numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely

from tasks.errors import BadInputError
from tasks.export.chip_grid import ChipGrid, inward, turned_places
from tasks.export.inputs import ExportItem
from tasks.export.parameters import ExportParameters
from tasks.export.sources import LabelSource, VectorSource
from tasks.imagery import Window
from tasks.imagery.places import Place
from tasks.training_data.formats import format_of

# A tract's row of chips and of blocks, with all its layers, takes about this many bytes.
_TRACT_BYTES = 96 * 2**20
_BLOCK_ROWS = 1024
_NARROWEST_PX = 2048
_LARGEST_CROP_PX = 8192


@dataclass(frozen=True)
class Candidate:
    """A place that could become a chip.

    Attributes:
        place: where it lies.
        feature: record of the label that it is cut around; -1 for a position of the grid.
    """

    place: Place
    feature: int = -1


class Candidates:
    """The candidates of an item, by cells: lanes from top to bottom, tracts from left to right.

    Args:
        parameters: of the export.
        item: the item.
        labels: its labels.
        bytes_per_pixel: of all layers that are streamed.
    """

    def __init__(
        self,
        parameters: ExportParameters,
        item: ExportItem,
        labels: LabelSource | None,
        bytes_per_pixel: int,
    ) -> None:
        grid = item.target()
        self.parameters = parameters
        self.tile = parameters.tile
        self.angles = tuple((item.quarters * 90 + angle) % 360 for angle in parameters.angles)
        swapped = item.quarters % 2 == 1
        tile, stride = self.tile, parameters.stride
        self.grid = ChipGrid(
            grid.rows,
            grid.cols,
            tile[::-1] if swapped else tile,
            stride[::-1] if swapped else stride,
            _tract_px(item, tile, bytes_per_pixel),
        )
        around_features = format_of(parameters.metadata_format).chips_at == "feature"
        self.features = labels if around_features and isinstance(labels, VectorSource) else None

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return self.grid.lanes if self.features is None else self.grid.feature_lanes

    @property
    def tracts(self) -> int:
        """Number of tracts."""
        return self.grid.tracts

    def is_apart(self, lane: int, piece_rows: int, origin_row: int) -> bool:
        """Whether a lane and the next one, of positions, need no row of pieces in common.

        Args:
            lane: not the last one.
            piece_rows: height of the pieces that imagery is read in, px.
            origin_row: a row where a piece begins, px.
        """
        starts = self.grid.row_starts
        if self.features is not None or lane + 1 >= len(starts):
            return True
        last = int(starts[lane]) + self.grid.tile[0] - 1
        return (last - origin_row) // piece_rows < (int(starts[lane + 1]) - origin_row) // piece_rows

    def of(self, lane: int, tract: int) -> list[Candidate]:
        """The candidates of a cell."""
        if self.features is not None:
            return self._around_features(self.features, self.grid.cell(lane, tract))
        return [
            Candidate(place)
            for window in self.grid.windows(lane, tract)
            for place in turned_places(window, self.tile, self.angles)
        ]

    def _around_features(self, labels: VectorSource, cell: Window) -> list[Candidate]:
        """One place per angle and feature whose first point (topmost, then leftmost) lies in the cell.

        They are ordered by the column of that point, so that numbers do not depend on the width of a tract.
        """
        near = labels.near(cell)
        whole = shapely.box(0, 0, self.grid.cols, self.grid.rows)
        found: list[tuple[int, int, Window]] = []
        for geometry, index in zip(near.geometries, near.numbers.tolist(), strict=True):
            bounds = shapely.bounds(geometry)
            inside = geometry
            if bounds[0] < 0 or bounds[1] < 0 or bounds[2] > self.grid.cols or bounds[3] > self.grid.rows:
                inside = shapely.intersection(geometry, whole)
                if shapely.area(inside) == 0:
                    continue
                bounds = shapely.bounds(inside)
            row, col = _first_pixel(inside, self.grid)
            if cell.row <= row < cell.row_stop and cell.col <= col < cell.col_stop:
                found.append((col, index, self._window(inside, bounds, index)))
        return [
            Candidate(place, index)
            for _, index, window in sorted(found, key=lambda item: item[:2])
            for place in self._turned(window)
        ]

    def _turned(self, window: Window) -> list[Place]:
        if self.parameters.fix_chip_size:
            return turned_places(window, self.tile, self.angles)
        rows, cols = window.shape
        # A crop is turned as a whole: lying on its side its height is its width.
        return [
            place
            for angle in self.angles
            for place in turned_places(window, (cols, rows) if angle % 180 else (rows, cols), [angle])
        ]

    def _window(self, inside: shapely.Geometry, bounds: np.ndarray, index: int) -> Window:
        xmin, ymin, xmax, ymax = (float(value) for value in bounds)
        rows, cols = self.grid.rows, self.grid.cols
        if self.parameters.fix_chip_size:
            window = self._around((xmin + xmax) / 2, (ymin + ymax) / 2)
            return window if _shows(window, inside) else self._around(*_somewhere_in(inside))
        row, col = max(0, math.floor(ymin)), max(0, math.floor(xmin))
        row_stop, col_stop = min(rows, math.ceil(ymax)), min(cols, math.ceil(xmax))
        window = Window(row, col, max(1, row_stop - row), max(1, col_stop - col))
        if max(window.shape) > _LARGEST_CROP_PX:
            raise BadInputError(
                f"The bounding box of label {index + 1} is {window.cols} x {window.rows} pixels, more than "
                f"the {_LARGEST_CROP_PX} that a chip may have.",
                "Set fix_chip_size to true, give a larger cell_size, or split the label.",
            )
        return window

    def _around(self, x: float, y: float) -> Window:
        """A chip whose middle is a point, moved inward at the edges."""
        tile_rows, tile_cols = self.grid.tile
        row = inward(round(y - tile_rows / 2), tile_rows, self.grid.rows)
        return Window(row, inward(round(x - tile_cols / 2), tile_cols, self.grid.cols), tile_rows, tile_cols)


def _shows(window: Window, geometry: shapely.Geometry) -> bool:
    """Whether a chip shows a whole polygon, or at least a pixel's area of it."""
    frame = shapely.box(window.col, window.row, window.col_stop, window.row_stop)
    return bool(shapely.covers(frame, geometry) or shapely.area(shapely.intersection(geometry, frame)) >= 1)


def _somewhere_in(geometry: shapely.Geometry) -> tuple[float, float]:
    """x, y of a point inside a polygon, whose middle may be a hole or a bay: of its largest part."""
    parts = shapely.get_parts(geometry)
    point = shapely.point_on_surface(parts[int(np.argmax(shapely.area(parts)))])
    return float(shapely.get_x(point)), float(shapely.get_y(point))


def _first_pixel(geometry: shapely.Geometry, grid: ChipGrid) -> tuple[int, int]:
    """(row, col) of the pixel that holds a polygon's topmost, then leftmost point."""
    points = shapely.get_coordinates(geometry)
    col, row = points[np.lexsort((points[:, 0], points[:, 1]))[0]].tolist()
    # The lower and right borders of the grid belong to its last cells.
    return min(math.floor(row), grid.rows - 1), min(math.floor(col), grid.cols - 1)


def _tract_px(item: ExportItem, tile: tuple[int, int], bytes_per_pixel: int) -> int:
    """Width of a tract: narrow enough for memory; the whole width where the rasters are strips."""
    grid, infos = item.target(), item.infos()
    if any(info.block_shape[1] >= info.width > _NARROWEST_PX for info in infos):
        return grid.cols
    fits = _TRACT_BYTES // ((max(tile) + _BLOCK_ROWS) * bytes_per_pixel)
    return max(_NARROWEST_PX, fits // _BLOCK_ROWS * _BLOCK_ROWS)
