"""What a plan of an inference holds; one JSON document that the parts and the finish work from."""

from __future__ import annotations

from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from tasks.imagery import Grid, RasterInfo, Window
from tasks.infer.crops import PlannedCrops
from tasks.infer.describe import FunctionDescription
from tasks.infer.fit import Rescaling
from tasks.infer.operators import PixelFormat
from tasks.infer.parameters import Tool
from tasks.infer.scores import Scoring
from tasks.infer.shards import Shard, TileGeometry

Processor = Literal["CPU", "GPU"]


class PlannedClass(BaseModel):
    """One class of the package: value, name, colour (red, green, blue)."""

    model_config = ConfigDict(frozen=True)

    value: int
    name: str
    color: tuple[int, int, int] | None


class PlannedPackage(BaseModel):
    """The package that is applied.

    ``foreign``: approved, but not made here, so the host contains it; ``trust``: by what it is trusted.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    name: str
    digest: str
    foreign: bool
    trust: str = ""
    classes: list[PlannedClass]


class MapGrid(BaseModel):
    """The grid on the map that the classes of a raw image come to lie on, see ``tasks.imagery.Grid``."""

    model_config = ConfigDict(frozen=True)

    crs_wkt: str
    transform: tuple[float, float, float, float, float, float]
    rows: int
    cols: int


class PlannedGrid(BaseModel):
    """One target grid and the rasters that it is computed from.

    Attributes:
        name: stem of the output's file.
        crs_wkt, transform, rows, cols: the grid, see ``tasks.imagery.Grid``; without CRS the text is empty.
        region: (row, col, rows, cols) of what is computed.
        rasters: positions in the plan's list, in the collection's order.
        footprints: per raster, its (row, col, rows, cols) on the grid.
        after, after_footprints: the same for the second date of a change detection.
        on_map: of a raw image that is classified, where its raster comes to lie; None where it stays.
        date: of a time series, what its rasters have in common: 2024-07-01, 2024-07 or 2024; else empty.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    crs_wkt: str
    transform: tuple[float, float, float, float, float, float]
    rows: int
    cols: int
    region: tuple[int, int, int, int]
    rasters: list[int]
    footprints: list[tuple[int, int, int, int]]
    after: list[int] = []
    after_footprints: list[tuple[int, int, int, int]] = []
    on_map: MapGrid | None = None
    date: str = ""

    @property
    def shown(self) -> list[int]:
        """The rasters that a picture of the result lies on: of two dates the second."""
        return self.after or self.rasters

    @property
    def grid(self) -> Grid:
        """The target grid."""
        return Grid(self.crs_wkt or None, self.transform, self.rows, self.cols)

    @property
    def output_grid(self) -> Grid:
        """The grid of the region alone."""
        window = Window(*self.region)
        return Grid(self.crs_wkt or None, self.grid.window_transform(window), window.rows, window.cols)

    @property
    def published(self) -> PlannedGrid:
        """The grid that a raster is published on: this one, or a raw image's on the map."""
        if self.on_map is None:
            return self
        whole = (0, 0, self.on_map.rows, self.on_map.cols)
        place = {**self.on_map.model_dump(), "region": whole, "footprints": [whole], "on_map": None}
        return self.model_copy(update=place)


class Plan(BaseModel):
    """Everything that parts and finish need to know.

    Attributes:
        output: name or URI that the person gave.
        folder: where the result is published.
        run_key: hash of the ordered shard keys and the finishing parameters.
        parameters: as given, for the record.
        finishing: the parameters that decide what finish makes of the shards.
        extract_bands: 0-based bands that the function takes, in its order.
        after_bands: the same for the rasters of a change detection's second date, which the function takes
            after the first one's.
        arguments: what the function is given; the rest of its arguments keeps its defaults.
        pixel_format: of the classified raster; None for objects.
        scoring: how classes are made of scores; None where the function gives the classes.
        rescaling: what becomes of pixel values before the function gets them; None: nothing.
        crops: what is cut around features; None for tiles.
        mask: SHA-256 of the polygons that results must lie in, which stand in the plan's folder; empty: none.
        processor: what the parts must run on.
        parts: (start, stop) over ``shards``.
        cut: whether the person gave the number of shards of a part, or it was chosen by the workers there.
        made: when the work was planned first, for the outputs' own records; None until the plan is saved.
        remarks: what a person should know, although it is no error.
        software: versions of what computed, which only the finish knows.
    """

    # NaN is a nodata value, which plain JSON has no number for.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    tool: Tool
    output: str
    folder: str
    run_key: str
    parameters: dict[str, Any]
    finishing: dict[str, Any]
    rasters: list[RasterInfo]
    package: PlannedPackage
    arguments: dict[str, str]
    description: FunctionDescription
    geometry: TileGeometry
    extract_bands: list[int]
    after_bands: list[int] = []
    pixel_format: PixelFormat | None
    scoring: Scoring | None = None
    rescaling: Rescaling | None = None
    crops: PlannedCrops | None = None
    mask: str = ""
    processor: Processor
    grids: list[PlannedGrid]
    shards: list[Shard]
    parts: list[tuple[int, int]]
    cut: Literal["given", "auto"] = "given"
    remarks: list[str]
    made: datetime | None = None
    software: dict[str, str] = {}

    @property
    def pixels(self) -> int:
        """Pixels of all regions."""
        return sum(grid.region[2] * grid.region[3] for grid in self.grids)

    @property
    def cut_name(self) -> str:
        """Says how the work of this run key is cut into parts; what belongs to parts is named after it."""
        return "auto" if self.cut == "auto" else str(len(self.parts))


def output_name(output: str) -> str:
    """A short name for files and titles: the output's name, or the last segment of its URI."""
    return PurePosixPath(urlsplit(output).path if "://" in output else output).name
