"""Where pixels come from: rasters, collections, identities, grids, windows and the one reader."""

from tasks.imagery.collection import expand_rasters, export_grid, grid_of_collection, grid_of_raster
from tasks.imagery.grid import Bounds, Grid, Transform
from tasks.imagery.prefetch import prefetch
from tasks.imagery.raster import RasterInfo, inspect_raster
from tasks.imagery.reader import GridReader, Pixels
from tasks.imagery.sample import BandSample, RasterSample, sample_raster
from tasks.imagery.windows import Window

__all__ = [
    "BandSample",
    "Bounds",
    "Grid",
    "GridReader",
    "Pixels",
    "RasterInfo",
    "RasterSample",
    "Transform",
    "Window",
    "expand_rasters",
    "export_grid",
    "grid_of_collection",
    "grid_of_raster",
    "inspect_raster",
    "prefetch",
    "sample_raster",
]
