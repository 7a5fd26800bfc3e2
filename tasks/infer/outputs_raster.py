"""A raster result: blocks in, one Cloud-Optimized GeoTIFF with its classes out; memory stays flat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
import rasterio.windows
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.io import DatasetWriter

from tasks.errors import RasterError
from tasks.imagery import Grid, Window
from tasks.labels import LabelClass

OverviewMethod = Literal["nearest", "mode", "average"]

_BLOCK = 512
_CACHE_BYTES = 64 * 2**20  # of blocks on their way to the disk; GDAL would take a twentieth of the memory
_MAX_CATEGORY_VALUE = 4095
# Types and usages of a raster attribute table's columns in GDAL's PAM files.
_INTEGER, _TEXT = "0", "2"
_GENERIC, _PIXEL_COUNT, _NAME, _VALUE, _RED, _GREEN, _BLUE = "0", "1", "2", "5", "6", "7", "8"


@dataclass(frozen=True, slots=True)
class RasterFormat:
    """What kind of raster is written.

    Attributes:
        dtype: numpy name, for example ``uint8``, ``uint16``, ``int32`` or ``float32``.
        nodata: value of pixels without a result; also fills what no block covers.
        count: number of bands.
        classes: the classes of band 1; empty for a raster of continuous values.
        band_names: descriptions, one per band; empty for none.
        overviews: how overviews are made: ``mode`` or ``nearest`` for classes, ``average`` for values.
        masked: whether the file keeps a mask inside, too, where a pixel does not count: of what the blocks
            bring, else of nodata. Nodata stays declared beside it: QGIS styles and most programs go by it,
            GDAL and ArcGIS by the mask, and both say the same.
    """

    dtype: str
    nodata: float | None
    count: int = 1
    classes: tuple[LabelClass, ...] = ()
    band_names: tuple[str, ...] = ()
    overviews: OverviewMethod = "mode"
    masked: bool = True


@dataclass(frozen=True, slots=True)
class RasterFiles:
    """What was written.

    Attributes:
        cog: the Cloud-Optimized GeoTIFF.
        side_cars: files that belong beside it: ``.aux.xml`` with class names and attribute table, ``.qml``
            with the colours for QGIS. Empty without classes.
        counts: pixels per class value of band 1, by value, zeros included; empty without classes.
    """

    cog: Path
    side_cars: tuple[Path, ...]
    counts: dict[int, int]


def write_raster(
    path: Path,
    grid: Grid,
    blocks: Iterable[tuple[Window, NDArray[Any]] | tuple[Window, NDArray[Any], NDArray[np.bool_]]],
    form: RasterFormat,
) -> RasterFiles:
    """Write blocks as one COG at ``path`` (ending in ``.tif``), with side-cars beside it.

    Args:
        path: local file; it appears only when it is complete.
        grid: the output's grid; pixels that no block covers hold ``form.nodata`` (or 0).
        blocks: windows with (rows, cols) or (bands, rows, cols) arrays of ``form.dtype``, best in
            (row, col) order; what reaches outside of the grid is left out. For the file's mask each may bring
            its own, (rows, cols), True where a pixel counts; without, a pixel counts unless all its bands are
            nodata. What no block covers does not count.
        form: type, nodata, bands, classes.

    Raises:
        RasterError: a block does not fit the format, or GDAL cannot write (disk full, for instance).
    """
    scratch = path.with_name(path.stem + ".partial.tif")
    unfinished = path.with_name(path.stem + ".unfinished.tif")
    counter = _Counter(form.classes)
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES, GDAL_TIFF_INTERNAL_MASK=True):
            with rasterio.open(scratch, "w", **_scratch_profile(grid, form)) as dataset:
                _describe(dataset, form)
                kept = _Mask(dataset, grid)
                for window, values, *mask in blocks:
                    _write_block(dataset, grid, window, values, form, counter)
                    if form.masked:
                        counts = mask[0] if mask else _not_nodata(values, form.nodata)
                        kept.add(window, counts)
                if form.masked:
                    kept.finish()
            _copy_to_cog(scratch, unfinished, form)
        unfinished.replace(path)
    except rasterio.errors.RasterioError as error:
        raise RasterError(
            f"The raster {path.name} cannot be written: {error}.",
            f"Check that {path.parent} is writable and has space for about twice the uncompressed raster.",
        ) from error
    finally:
        for leftover in (scratch, unfinished):
            leftover.unlink(missing_ok=True)
            leftover.with_name(leftover.name + ".aux.xml").unlink(missing_ok=True)
    if not form.classes:
        return RasterFiles(path, (), {})
    side_cars = (path.with_name(path.name + ".aux.xml"), path.with_suffix(".qml"))
    side_cars[0].write_bytes(attribute_table(form.classes, counter.counts))
    side_cars[1].write_bytes(qgis_style(form.classes))
    return RasterFiles(path, side_cars, counter.counts)


def attribute_table(classes: Sequence[LabelClass], counts: dict[int, int]) -> bytes:
    """A PAM file (``.aux.xml``) with category names and the attribute table of band 1.

    The columns are those of a classified raster in ArcGIS (Value, Class, Red, Green, Blue), and Count.
    Source of the columns: ``docs/formats/tools.md`` §3; of the file: GDAL's persistent auxiliary metadata.
    """
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    names = {item.value: item.name for item in classes}
    largest = max(names, default=-1)
    if 0 <= largest <= _MAX_CATEGORY_VALUE and min(names) >= 0:
        categories = ElementTree.SubElement(band, "CategoryNames")
        for value in range(largest + 1):
            ElementTree.SubElement(categories, "Category").text = names.get(value, "")
    table = ElementTree.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    columns = (
        ("Value", _INTEGER, _VALUE),
        ("Class", _TEXT, _NAME),
        ("Red", _INTEGER, _RED),
        ("Green", _INTEGER, _GREEN),
        ("Blue", _INTEGER, _BLUE),
        ("Count", _INTEGER, _PIXEL_COUNT),
    )
    for index, (name, kind, usage) in enumerate(columns):
        column = ElementTree.SubElement(table, "FieldDefn", index=str(index))
        ElementTree.SubElement(column, "Name").text = name
        ElementTree.SubElement(column, "Type").text = kind
        ElementTree.SubElement(column, "Usage").text = usage
    for index, item in enumerate(classes):
        row = ElementTree.SubElement(table, "Row", index=str(index))
        count = min(counts.get(item.value, 0), 2**31 - 1)  # GDAL's integer columns have 32 bits
        for cell in (item.value, item.name, *item.color, count):
            ElementTree.SubElement(row, "F").text = str(cell)
    ElementTree.indent(root)
    # No XML declaration: GDAL takes the first node for the root.
    return ElementTree.tostring(root, encoding="unicode").encode()


def qgis_style(classes: Sequence[LabelClass]) -> bytes:
    """A QGIS layer style (``.qml``) that paints band 1 by class; QGIS loads it when it lies beside."""
    root = ElementTree.Element("qgis", version="3.22", styleCategories="Symbology")
    pipe = ElementTree.SubElement(root, "pipe")
    renderer = ElementTree.SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor=""
    )
    ElementTree.SubElement(renderer, "rasterTransparency")
    palette = ElementTree.SubElement(renderer, "colorPalette")
    for item in classes:
        red, green, blue = item.color
        ElementTree.SubElement(
            palette,
            "paletteEntry",
            value=str(item.value),
            color=f"#{red:02x}{green:02x}{blue:02x}",
            alpha="255",
            label=item.name,
        )
    ElementTree.SubElement(pipe, "rasterresampler")
    ElementTree.SubElement(root, "blendMode").text = "0"
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{text}\n".encode()


class _Counter:
    """Pixels per class value, block by block."""

    def __init__(self, classes: Sequence[LabelClass]) -> None:
        self.counts = dict.fromkeys((item.value for item in classes), 0)

    def add(self, values: NDArray[Any]) -> None:
        if not self.counts:
            return
        found, counts = np.unique(values, return_counts=True)
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            if value in self.counts:
                self.counts[value] += count


def _scratch_profile(grid: Grid, form: RasterFormat) -> dict[str, Any]:
    a, b, c, d, e, f = grid.transform
    return {
        "driver": "GTiff",
        "width": grid.cols,
        "height": grid.rows,
        "count": form.count,
        "dtype": form.dtype,
        "crs": grid.crs_wkt,
        "transform": Affine(a, b, c, d, e, f),
        "nodata": form.nodata,
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "interleave": "band",
        # Blocks that are never written take no space and read as nodata.
        "SPARSE_OK": "TRUE",
        "BIGTIFF": "IF_SAFER",
    }


def _describe(dataset: DatasetWriter, form: RasterFormat) -> None:
    if form.band_names:
        dataset.descriptions = form.band_names
    if form.classes and form.count == 1 and form.dtype in ("uint8", "uint16"):
        largest = int(np.iinfo(form.dtype).max)
        colors = {item.value: (*item.color, 255) for item in form.classes if 0 <= item.value <= largest}
        dataset.write_colormap(1, colors)
        dataset.colorinterp = [ColorInterp.palette]


def _write_block(
    dataset: DatasetWriter,
    grid: Grid,
    window: Window,
    values: NDArray[Any],
    form: RasterFormat,
    counter: _Counter,
) -> None:
    stack = values[None] if values.ndim == 2 else values
    if stack.shape != (form.count, *window.shape) or stack.dtype != np.dtype(form.dtype):
        raise RasterError(
            f"A block of {stack.dtype} {stack.shape} does not fit the raster of {form.dtype} with "
            f"{form.count} bands at {window}.",
            "Report this as a bug, with the parameters of the run.",
        )
    inside = window.intersection(grid.window)
    if inside.is_empty:
        return
    stack = stack[:, *inside.slices_in(window)]
    counter.add(stack[0])
    dataset.write(stack, window=rasterio.windows.Window(inside.col, inside.row, inside.cols, inside.rows))


def _not_nodata(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Where a block of (rows, cols) or (bands, rows, cols) holds a value in any band.  # (rows, cols)"""
    if nodata is None:
        return np.ones(values.shape[-2:], np.bool_)
    counts = ~np.isnan(values) if np.isnan(nodata) else values != nodata
    return np.asarray(counts if values.ndim == 2 else counts.any(axis=0))


class _Mask:
    """The mask of a raster. It is begun at the first pixel that does not count: a full raster needs none."""

    def __init__(self, dataset: DatasetWriter, grid: Grid) -> None:
        self._dataset = dataset
        self._grid = grid
        self._full: list[Window] = []  # windows that count altogether, while there is no mask
        self._begun = False
        self._covered = 0

    def add(self, window: Window, counts: NDArray[np.bool_]) -> None:
        """Where the pixels of a window count; what lies outside of the grid is left out."""
        inside = window.intersection(self._grid.window)
        if inside.is_empty:
            return
        self._covered += inside.rows * inside.cols
        here = counts[inside.slices_in(window)]
        if not self._begun and here.all():
            self._full.append(inside)
            return
        self._begin()
        self._write(inside, here)

    def finish(self) -> None:
        """What no window covered does not count."""
        if self._covered < self._grid.rows * self._grid.cols:
            self._begin()

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            for window in self._full:
                self._write(window, np.ones(window.shape, np.bool_))
            self._full.clear()

    def _write(self, window: Window, counts: NDArray[np.bool_]) -> None:
        place = rasterio.windows.Window(window.col, window.row, window.cols, window.rows)
        self._dataset.write_mask(counts, window=place)


def _copy_to_cog(scratch: Path, target: Path, form: RasterFormat) -> None:
    rasterio.shutil.copy(
        scratch,
        target,
        driver="COG",
        BLOCKSIZE=str(_BLOCK),
        COMPRESS="DEFLATE",
        # Differences between neighbours help with values; class numbers compress better as they are.
        PREDICTOR="NO" if form.classes else "YES",
        OVERVIEW_RESAMPLING=form.overviews.upper(),
        OVERVIEWS="IGNORE_EXISTING",
        BIGTIFF="IF_SAFER",
        NUM_THREADS="ALL_CPUS",
    )
