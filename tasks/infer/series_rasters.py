"""What changed between the classified rasters of a series: areas, transitions, change rasters.

Finished rasters are read window by window, two at a time: memory does not grow with them. On disk lie the
first date's, the last one's and the one before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.windows
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from tasks.imagery import Grid, Window
from tasks.infer.cell_areas import CellAreas
from tasks.infer.items import ITEM, label_classes, raster_assets, series_item, table_asset
from tasks.infer.outputs import Outputs
from tasks.infer.outputs_raster import RasterFormat, write_raster
from tasks.infer.planned import Plan, PlannedGrid, output_name
from tasks.infer.series_report import CSV_TYPE, JSON_TYPE, SUMMARY, SeriesTables, as_csv, columns_of
from tasks.infer.stac import COG_TYPE, ResultAsset
from tasks.labels import LabelClass

_ROWS, _COLS = 512, 2048  # of a window: whole blocks of our COGs
_COUNTED_DIRECTLY = 2**16  # values below it are counted without being sorted

Tally = dict[int, tuple[int, float]]
"""Pixels and square metres by class value."""


@dataclass(frozen=True)
class _Dated:
    """The classified raster of one date: where it lies, its window on the common grid, its values."""

    date: str
    path: Path
    window: Window
    nodata: int | None
    values: tuple[int, ...]


def class_areas(path: Path, grid: Grid, nodata: float | None) -> Tally:
    """Pixels and areas of the classes in a classified raster, by value; nodata is left out.

    Args:
        path: of the raster, whose first band holds integers.
        grid: of the raster.
        nodata: its value; None: every value counts.
    """
    cells = CellAreas(grid)
    found: dict[int, tuple[int, float]] = {}
    with rasterio.open(path) as dataset:
        for window in _windows(grid.window):
            _add(found, _read(dataset, window).ravel(), np.repeat(cells.of_rows(window), window.cols))
    if nodata is not None:
        found.pop(int(nodata), None)
    return dict(sorted(found.items()))


@dataclass
class RasterSeries:
    """The rasters of a series, taken date by date.

    Attributes:
        plan: of a classification by date.
        folder: for files on their way.
    """

    plan: Plan
    folder: Path
    tables: SeriesTables = field(default_factory=lambda: SeriesTables("pixels"))
    assets: dict[str, ResultAsset] = field(default_factory=dict)
    first: _Dated | None = None
    before: _Dated | None = None
    here: _Dated | None = None

    def take(self, planned: PlannedGrid, cog: Path, areas: Tally) -> None:
        """Take the finished raster of a date, which may be moved away afterwards."""
        assert self.plan.pixel_format is not None
        kept = self.folder / f"series-{planned.name}.tif"
        os.link(cog, kept)
        nodata = int(self.plan.pixel_format.nodata)
        self.here = _Dated(planned.date, kept, Window(*planned.region), nodata, tuple(areas))
        in_all = sum(area for _, area in areas.values())
        names = self._names
        for value in sorted({*names, *areas}):
            pixels, area = areas.get(value, (0, 0.0))
            self.tables.dates.append(
                {
                    "date": planned.date,
                    "Classvalue": value,
                    "Class": names.get(value, str(value)),
                    "pixels": pixels,
                    "area_m2": round(area, 6),
                    "share": round(area / in_all, 9) if in_all else 0.0,
                }
            )

    def compare(self, outputs: Outputs) -> None:
        """Compare the raster that was taken last with that of the date before."""
        assert self.here is not None
        if self.before is not None:
            self._compare(self.before, self.here, outputs)
            if self.before is not self.first:
                self.before.path.unlink()
        self.first = self.first or self.here
        self.before = self.here

    def finish(self, outputs: Outputs) -> None:
        """Compare the last date with the first one, and put the tables into the result's folder."""
        if self.first is not None and self.before is not None and len(self.plan.grids) > 2:
            self._compare(self.first, self.before, outputs)
        put_tables(self.plan, self.tables, self.assets, outputs)
        for kept in {self.first, self.before} - {None}:
            assert kept is not None
            kept.path.unlink()

    @property
    def _names(self) -> dict[int, str]:
        return {item.value: item.name for item in self.plan.package.classes}

    def _compare(self, first: _Dated, second: _Dated, outputs: Outputs) -> None:
        grid = self.plan.grids[0].grid
        common = first.window.intersection(second.window)
        if common.is_empty:
            return
        names = self._names
        found = _transitions(first, second, grid, common)
        for (one, other), (pixels, area) in found.items():
            self.tables.changes.append(
                {
                    "from_date": first.date,
                    "to_date": second.date,
                    "from_class": names.get(one, str(one)),
                    "to_class": names.get(other, str(other)),
                    "pixels": pixels,
                    "area_m2": round(area, 6),
                }
            )
        if not self.plan.finishing["series"]["change_rasters"] or not found:
            return
        name = f"{output_name(self.plan.output)}_changes_{first.date}_{second.date}"
        form, base = change_format([item.value for item in label_classes(self.plan.package.classes)], found)
        form = RasterFormat(form.dtype, form.nodata, classes=_coded_classes(self.plan, found, base))
        place = Grid(grid.crs_wkt, grid.window_transform(common), common.rows, common.cols)
        blocks = _coded(first, second, common, form, base)
        files = write_raster(self.folder / f"{name}.tif", place, blocks, form)
        key, title = f"changes_{first.date}_{second.date}", "Class before and class after"
        self.assets |= raster_assets(key, name, title, place, form)
        outputs.put(files.cog, COG_TYPE)
        for path in files.side_cars:
            outputs.put(path, "application/xml")
        outputs.described.append(
            {
                "name": name,
                "path": files.cog.name,
                "media_type": COG_TYPE,
                "content": "changes",
                "from_date": first.date,
                "to_date": second.date,
                "code_base": base,
                "bounds": list(place.bounds),
                "crs_wkt": place.crs_wkt,
                "rows": place.rows,
                "cols": place.cols,
                "bands": 1,
                "dtype": form.dtype,
            }
        )


def put_tables(plan: Plan, tables: SeriesTables, assets: Mapping[str, ResultAsset], outputs: Outputs) -> None:
    """Put the tables of a series, and the item of its changes, into the result's folder."""
    name = output_name(plan.output)
    columns = columns_of(tables.kind)
    files = (
        (f"{name}_dates.csv", as_csv(tables.dates, columns[0]), CSV_TYPE, len(tables.dates)),
        (f"{name}_changes.csv", as_csv(tables.changes, columns[1]), CSV_TYPE, len(tables.changes)),
        (f"{name}{SUMMARY}", tables.to_json(name), JSON_TYPE, len(tables.changes)),
    )
    listed = dict(assets)
    for path, data, media_type, rows in files:
        outputs.put_bytes(path, data, media_type)
        outputs.described.append(
            {"name": name, "path": path, "media_type": media_type, "content": "series", "rows_in_table": rows}
        )
        listed[path.removeprefix(f"{name}_").partition(".")[0]] = table_asset(path, media_type)
    outputs.put_bytes(f"{name}_series.stac.json", series_item(plan, listed), ITEM)


def change_format(values: list[int], found: Mapping[tuple[int, int], Any]) -> tuple[RasterFormat, int]:
    """The format of a change raster, and by what the class before is multiplied: a power of ten.

    Args:
        values: of the package's classes, none below 0.
        found: transitions that occur; the function may give values that no class has.
    """
    everything = {*values, *(value for pair in found for value in pair)}
    base = 10
    while base <= max(everything):
        base *= 10
    largest = base * base - 1
    dtype = "uint8" if largest <= 255 else "uint16" if largest <= 65535 else "uint32"
    nodata = float(np.iinfo(dtype).max) if 0 in everything else 0.0
    return RasterFormat(dtype, nodata), base


def _coded_classes(plan: Plan, found: Mapping[tuple[int, int], Any], base: int) -> tuple[LabelClass, ...]:
    """What the codes mean: unchanged classes are pale, changed ones have the colour of what they became."""
    known = {item.value: item for item in label_classes(plan.package.classes)}
    made = []
    for one, other in found:
        after = known.get(other)
        red, green, blue = after.color if after is not None else (128, 128, 128)
        if one == other:
            red, green, blue = ((value + 3 * 235) // 4 for value in (red, green, blue))
        before_name = known[one].name if one in known else str(one)
        after_name = after.name if after is not None else str(other)
        text = before_name if one == other else f"{before_name} → {after_name}"
        made.append(LabelClass(one * base + other, text, (red, green, blue)))
    return tuple(sorted(made, key=lambda item: item.value))


def _coded(
    first: _Dated, second: _Dated, common: Window, form: RasterFormat, base: int
) -> Iterator[tuple[Window, NDArray[Any]]]:
    for window, one, other in _both(first, second, common):
        code = one.astype(np.uint32) * base + other
        seen = (one != first.nodata) & (other != second.nodata)
        values = np.where(seen, code, 0 if form.nodata is None else int(form.nodata))
        yield window.shift(-common.row, -common.col), values.astype(form.dtype)


def _transitions(
    first: _Dated, second: _Dated, grid: Grid, common: Window
) -> dict[tuple[int, int], tuple[int, float]]:
    """Pixels and areas by the classes before and after, of pixels that both dates have seen."""
    cells = CellAreas(grid)
    before, after = np.array(first.values, np.int64), np.array(second.values, np.int64)
    found: dict[int, tuple[int, float]] = {}
    for window, one, other in _both(first, second, common):
        seen = (one != first.nodata) & (other != second.nodata)
        code = np.searchsorted(before, one[seen]) * len(after) + np.searchsorted(after, other[seen])
        _add(found, code, np.broadcast_to(cells.of_rows(window)[:, None], window.shape)[seen])
    return {
        (int(before[place // len(after)]), int(after[place % len(after)])): amount
        for place, amount in sorted(found.items())
    }


def _add(found: dict[int, tuple[int, float]], values: NDArray[Any], areas: NDArray[np.float64]) -> None:
    """Count the pixels of each value, and add up their areas."""
    if not len(values):
        return
    if values.min() >= 0 and values.max() < _COUNTED_DIRECTLY:
        pixels, square_metres = np.bincount(values), np.bincount(values, areas)
        there = np.flatnonzero(pixels)
        pixels, square_metres = pixels[there], square_metres[there]
    else:
        there, places = np.unique(values, return_inverse=True)
        pixels, square_metres = np.bincount(places), np.bincount(places, areas)
    for value, count, area in zip(there.tolist(), pixels.tolist(), square_metres.tolist(), strict=True):
        before = found.get(value, (0, 0.0))
        found[value] = (before[0] + count, before[1] + area)


def _both(
    first: _Dated, second: _Dated, common: Window
) -> Iterator[tuple[Window, NDArray[np.int64], NDArray[np.int64]]]:
    """Windows of the common ground, on the common grid, with both dates' values."""
    with rasterio.open(first.path) as one, rasterio.open(second.path) as other:
        for window in _windows(common):
            yield (
                window,
                _read(one, window.shift(-first.window.row, -first.window.col)),
                _read(other, window.shift(-second.window.row, -second.window.col)),
            )


def _windows(area: Window) -> Iterator[Window]:
    for row in range(area.row, area.row_stop, _ROWS):
        for col in range(area.col, area.col_stop, _COLS):
            yield Window(row, col, _ROWS, _COLS).intersection(area)


def _read(dataset: DatasetReader, window: Window) -> NDArray[np.int64]:
    place = rasterio.windows.Window(window.col, window.row, window.cols, window.rows)
    values: NDArray[np.int64] = dataset.read(1, window=place)
    return values
