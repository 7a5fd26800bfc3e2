"""The objects of an object classification: read once, put into spatial order, cut into shards.

The table travels with the plan, so that a part reads the rows of its shards alone, and the output holds every
row of the input, whether it could be classified or not.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pyproj
import shapely
from numpy.typing import NDArray

from tasks.assess.inputs import vector_files
from tasks.errors import BadInputError, PackageError
from tasks.imagery import RasterInfo, Window
from tasks.imagery.collection import crs_name, same_crs
from tasks.imagery.identity import unsigned
from tasks.infer.crops import (
    CropCutter,
    Features,
    ImagesReader,
    PlannedCrops,
    check_whole_images,
    crop_windows,
)
from tasks.infer.describe import FunctionDescription
from tasks.infer.mask import MaskPolygons, geometry_px
from tasks.infer.outputs_tables import field_named
from tasks.infer.parameters import ClassifyObjectsParameters
from tasks.infer.planned import Plan, PlannedGrid
from tasks.infer.shards import Footprint, Shard
from tasks.labels.vector import read_frame
from tasks.package import Package
from tasks.store import ObjectStore, join

TABLE = "features.parquet"
RECORD, GRID = "chipline_record", "chipline_grid"
"""Columns of the table: number of the row in the input, from 0; grid that it is cut from, -1 for none."""

CAPTION = "Caption"
"""Name that a function gives the field with its captions, in any case, and the field's own by default."""

# Fields of the output: their names, and what follows the label's name where the features have that name.
_FIELDS = {
    "confidence_field": ("Confidence", "Confidence"),
    "source_field": ("source_raster", "Source"),
    "date_field": ("source_date", "Date"),
    "area_field": ("area_m2", "Area"),
    "package_field": ("package", "Package"),
    "run_field": ("run", "Run"),
}

# Features are taken cell by cell, so that a shard's crops lie together.
_CELL_PX = 1024
_ROWS_PER_GROUP = 4096


@dataclass(frozen=True)
class FeatureLayer:
    """A layer as it was read: where it lies, and all its rows and fields."""

    uri: str
    frame: geopandas.GeoDataFrame


def read_layer(store: ObjectStore, in_features: str) -> FeatureLayer:
    """The features to classify.

    Raises:
        NotFoundError, LabelError: the layer cannot be read.
        BadInputError: several layers, or no coordinate system.
    """
    files = vector_files(store, in_features)
    if len(files) > 1:
        raise BadInputError(f"{in_features} holds several layers: {', '.join(files)}.", "Name one of them.")
    frame = read_frame(files[0])
    if frame.crs is None:
        raise BadInputError(
            f"The features {files[0]} have no coordinate reference system.",
            "Assign one, for example with ogr2ogr -a_srs EPSG:32612.",
        )
    return FeatureLayer(
        files[0], frame if frame.geometry.name == "geometry" else frame.rename_geometry("geometry")
    )


@dataclass(frozen=True)
class FeatureInput:
    """Features as they came.

    Attributes:
        frame: all rows and fields in the input's order, in one coordinate system.
        crops: what is cut around them.
        rows: table rows, as (record, grid) in spatial order; rows that are not classified stand last.
        geometry_px: geometry of the classified ones in pixels of their grid, in that order.
    """

    frame: geopandas.GeoDataFrame
    crops: PlannedCrops
    rows: NDArray[np.int64]  # (table rows, 2)
    geometry_px: NDArray[np.object_]
    remarks: tuple[str, ...] = ()

    @cached_property
    def table(self) -> bytes:
        """The table as GeoParquet; equal features give equal bytes.

        Raises:
            BadInputError: a field that Parquet does not take.
        """
        frame = self.frame.iloc[self.rows[:, 0]].reset_index(drop=True)
        frame[RECORD], frame[GRID] = self.rows[:, 0], self.rows[:, 1]
        sink = io.BytesIO()
        try:
            frame.to_parquet(sink, index=False, compression="zstd", row_group_size=_ROWS_PER_GROUP)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise BadInputError(
                f"The features have a field that cannot be kept: {error}.",
                "Leave out fields with lists or mixed kinds of values.",
            ) from error
        return sink.getvalue()

    @property
    def digest(self) -> str:
        """SHA-256 of the table."""
        return hashlib.sha256(self.table).hexdigest()

    def shards(
        self, number: int, footprints: Sequence[Footprint], base_key: str, per_shard: int
    ) -> list[Shard]:
        """Runs of the features of one grid, with their keys.

        Args:
            number: of the grid.
            footprints: of its rasters, in the collection's order.
            base_key: hash of all that the shards have in common.
            per_shard: features per shard.
        """
        mine = np.flatnonzero(self.rows[:, 1] == number)
        made = []
        for run, start in enumerate(range(0, len(mine), per_shard)):
            here = mine[start : start + per_shard]
            geometry = self.geometry_px[here]
            windows = crop_windows(geometry, self.crops)
            area = _hull(windows)
            touched = [item.identity for item in footprints if not item.window.intersection(area).is_empty]
            digest = hashlib.sha256()
            for text in (base_key, *touched):
                digest.update(text.encode() + b"\x1f")
            shapes = np.asarray(self.frame.geometry.array, dtype=object)[self.rows[here, 0]]
            for wkb in shapely.to_wkb(shapes[~shapely.is_missing(shapes)]):
                digest.update(len(wkb).to_bytes(8, "little") + wkb)
            # The row numbers stand in the result.
            digest.update(np.array([here[0], len(here)], np.int64).tobytes())
            made.append(
                Shard(
                    grid=number,
                    row=run,
                    col=0,
                    tile_row=int(here[0]),
                    tile_col=0,
                    tile_rows=len(here),
                    tile_cols=1,
                    window=(area.row, area.col, area.rows, area.cols),
                    key=digest.hexdigest(),
                )
            )
        return made

    def per_shard(self, shard_size: int) -> int:
        """Features per shard: as many crops as a shard has room for, in whole batches."""
        room = max(1, shard_size * shard_size // (self.crops.rows * self.crops.cols))
        return -(-room // self.crops.batch) * self.crops.batch


def planned_crops(
    parameters: ClassifyObjectsParameters, package: Package, description: FunctionDescription
) -> PlannedCrops:
    """How a package wants its crops; most fields and counts are still open.

    Raises:
        BadInputError: a caption_field of its own name, and the function gives no captions.
        PackageError: a function of single rasters, or a padding, which a crop has no use for.
    """
    geometry, configuration = description.geometry, description.crops
    if not configuration:
        raise PackageError(
            f"The function of {package.name} takes one raster and not several (dataType rasters), as those "
            "that classify objects do.",
            "Mend its getParameterInfo.",
        )
    if geometry.padding:
        raise PackageError(
            f"The function of {package.name} asks for a padding of {geometry.padding} around its crops.",
            "Leave padding out: a crop is all that the function sees of an object.",
        )
    definition = package.definition
    fixed = configuration.get("CropSizeFixed", definition.crop_size_fixed)
    blacken = configuration.get("BlackenAroundFeature", definition.blacken_around_feature)
    return PlannedCrops(
        rows=geometry.rows,
        cols=geometry.cols,
        fixed=fixed is None or bool(int(fixed)),
        blacken=bool(int(blacken or 0)),
        batch=max(1, int(configuration.get("batch_size") or 1)),
        whole_images=False,
        table=TABLE,
        crs_wkt="",
        label_field="",
        confidence_field="",
        source_field="",
        counts={},
        caption_field=_caption_field(parameters, package, description),
    )


def features_of_layer(
    parameters: ClassifyObjectsParameters,
    layer: FeatureLayer,
    grids: Sequence[PlannedGrid],
    crops: PlannedCrops,
    mask: MaskPolygons | None,
) -> FeatureInput:
    """The features of a layer, each with the grids that its crop lies on.

    Raises:
        BadInputError: a field that is taken, or not one feature on the imagery.
    """
    frame = layer.frame
    shapes = np.asarray(frame.geometry.array, dtype=object)
    usable = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    crs_wkt = str(frame.crs.to_wkt())
    records, numbers, pixels = [], [], []
    for number, planned in enumerate(grids):
        index = np.flatnonzero(usable)
        moved = geometry_px(shapes[index], crs_wkt, planned.grid)
        index, moved = index[_finite(moved)], moved[_finite(moved)]
        on = _on_imagery(moved, planned, crops, with_extent=parameters.extent is not None)
        if mask is not None:
            xmin, ymin, xmax, ymax = shapely.bounds(moved).reshape(-1, 4).T
            on &= mask.on_grid(planned.grid).holds((xmin + xmax) / 2, (ymin + ymax) / 2)
        index, moved = index[on], moved[on]
        windows = crop_windows(moved, crops)
        cells = windows[:, :2] // _CELL_PX
        sequence = np.lexsort((index, windows[:, 1], windows[:, 0], cells[:, 1], cells[:, 0]))
        records.append(index[sequence])
        numbers.append(np.full(len(index), number))
        pixels.append(moved[sequence])
    found = np.concatenate(records)
    left = np.setdiff1d(np.arange(len(frame)), found)
    counts = {
        "features": len(frame),
        "features_without_geometry": int((~usable).sum()),
        "features_beside_the_imagery": len(np.intersect1d(left, np.flatnonzero(usable))),
    }
    if usable.any() and not len(found):
        raise BadInputError(
            f"None of the {int(usable.sum())} features of {layer.uri} lies on the imagery: they cover "
            f"{_listed(shapely.total_bounds(shapes[usable]))} in {crs_name(crs_wkt)}, the imagery "
            f"{_listed(grids[0].grid.bounds)} in {crs_name(grids[0].crs_wkt)}.",
            "Check the coordinate systems of both, and the extent.",
        )
    if "SHAPEFILE" in parameters.output_formats and len(set(shapely.get_dimensions(shapes[usable]))) > 1:
        raise BadInputError(
            f"{layer.uri} holds points, lines or polygons together, and a Shapefile holds one of them.",
            "Leave SHAPEFILE out of output_formats: FLATGEOBUF and GEOJSON hold them all.",
        )
    names = [str(column) for column in frame.columns]
    rows = np.column_stack(
        [
            np.concatenate([found, left]),
            np.concatenate([*numbers, np.full(len(left), -1)]),
        ]
    ).astype(np.int64)
    crops = _with_fields(parameters, crops, names).model_copy(update={"crs_wkt": crs_wkt, "counts": counts})
    return FeatureInput(frame, crops, rows, np.concatenate(pixels), tuple(_remarks(shapes, usable, crops)))


def features_of_images(
    parameters: ClassifyObjectsParameters, infos: Sequence[RasterInfo], crops: PlannedCrops
) -> tuple[FeatureInput, list[PlannedGrid]]:
    """Each image as one object, and the grid that they stand on, one below the other.

    Raises:
        BadInputError: images that are too large, or parameters that mean nothing without features.
    """
    for name in ("cell_size", "extent", "mask", "snap_raster"):
        if getattr(parameters, name) is not None:
            raise BadInputError(
                f"{name} means nothing where each image is one object.", "Leave it out, or give in_features."
            )
    check_whole_images(infos)
    crops = crops.model_copy(update={"whole_images": True, "fixed": True, "blacken": False})
    places = [(number * crops.rows, 0, crops.rows, crops.cols) for number in range(len(infos))]
    grid = PlannedGrid(
        name="images",
        crs_wkt="",
        transform=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
        rows=len(infos) * crops.rows,
        cols=crops.cols,
        region=(0, 0, len(infos) * crops.rows, crops.cols),
        rasters=list(range(len(infos))),
        footprints=places,
    )
    layer_wkt = _layer_crs(parameters.out_sr, infos)
    if layer_wkt is None and parameters.output_formats:
        raise BadInputError(
            "The images lie on no map, so that the result is a table, which output_formats do not hold.",
            "Leave output_formats empty: the table is written as Parquet and into a GeoPackage.",
        )
    outlines = [_outline(info, layer_wkt) for info in infos]
    frame = geopandas.GeoDataFrame(
        {
            "image_id": np.arange(len(infos)),
            "image": [PurePosixPath(urlsplit(info.uri).path).name for info in infos],
            "source_raster": [unsigned(info.uri) for info in infos],
        },
        geometry=np.array(outlines, dtype=object),
        crs=layer_wkt,
    )
    boxes = np.array([shapely.box(0, row, crops.cols, row + crops.rows) for row, _, _, _ in places])
    numbers = np.column_stack([np.arange(len(infos)), np.zeros(len(infos), np.int64)])
    counts = {"features": len(infos), "features_without_geometry": 0, "features_beside_the_imagery": 0}
    crops = _with_fields(parameters, crops, [str(column) for column in frame.columns])
    # Where the image comes from stands in the table already.
    crops = crops.model_copy(update={"crs_wkt": layer_wkt or "", "counts": counts, "source_field": ""})
    return FeatureInput(frame, crops, numbers, boxes), [grid]


def features_of_plan(plan: Plan, table: bytes) -> Callable[[Shard], Features]:
    """Reads the features of a shard from the plan's table."""
    crops = plan.crops
    assert crops is not None
    file = pa.parquet.ParquetFile(pa.BufferReader(table))

    def read(shard: Shard) -> Features:
        start, stop = shard.tile_row, shard.tile_row + shard.tile_rows
        rows = np.arange(start, stop)
        if crops.whole_images:
            top = rows * crops.rows
            return Features(rows, shapely.box(0.0 * top, top, 0.0 * top + crops.cols, top + crops.rows))
        groups = range(start // _ROWS_PER_GROUP, (stop - 1) // _ROWS_PER_GROUP + 1)
        column = file.read_row_groups(list(groups), columns=["geometry"])["geometry"]
        first = groups[0] * _ROWS_PER_GROUP
        found = shapely.from_wkb(column.to_numpy()[start - first : stop - first])
        planned = plan.grids[shard.grid]
        shapes = np.asarray(found, object)
        return Features(rows, geometry_px(shapes, crops.crs_wkt, planned.grid))

    return read


def table_of_plan(store: ObjectStore, plan: Plan) -> bytes:
    """The plan's features.

    Raises:
        StoreError: they are gone.
    """
    assert plan.crops is not None
    return store.get(join(plan.folder, plan.crops.table))


def crop_cutter(store: ObjectStore, plan: Plan) -> CropCutter:
    """The cutter of a plan's crops, with its features at hand."""
    assert plan.crops is not None
    return CropCutter(plan.crops, features_of_plan(plan, table_of_plan(store, plan)))


def images_reader(plan: Plan, planned: PlannedGrid, infos: Sequence[RasterInfo]) -> ImagesReader:
    """The reader of whole images, for some of the plan's rasters."""
    indices = zip(planned.rasters, planned.footprints, strict=True)
    places = {plan.rasters[index].uri: Window(*place) for index, place in indices}
    return ImagesReader([(places[info.uri], info) for info in infos], tuple(plan.extract_bands))


def _with_fields(
    parameters: ClassifyObjectsParameters, crops: PlannedCrops, names: Sequence[str]
) -> PlannedCrops:
    taken = [*names, RECORD, GRID]
    label = parameters.class_label_field
    if field_named(taken, label) is not None:
        raise BadInputError(
            f"The features have a field {label!r} already (class_label_field).",
            "Give another name for the label.",
        )
    if crops.caption_field and field_named([*taken, label], crops.caption_field) is not None:
        raise BadInputError(
            f"The features have a field {crops.caption_field!r} already (caption_field).",
            "Give another name for the caption.",
        )
    taken += [label, crops.caption_field]
    fields = {"label_field": label}
    for field, (own, further) in _FIELDS.items():
        free = [name for name in (own, f"{label}{further}") if field_named(taken, name) is None]
        if not free:
            raise BadInputError(
                f"The features have the fields that go with {label!r} already.",
                "Give another class_label_field.",
            )
        fields[field] = free[0]
    return crops.model_copy(update=fields)


def _caption_field(
    parameters: ClassifyObjectsParameters, package: Package, description: FunctionDescription
) -> str:
    """The field for captions; empty where the function announces none."""
    if field_named(description.fields, CAPTION) is not None:
        return parameters.caption_field
    if parameters.caption_field != CAPTION:
        raise BadInputError(
            f"The function of {package.name} gives no captions: its fields are "
            f"{', '.join(description.fields) or 'none'}.",
            f"Leave caption_field at {CAPTION}, or take a package whose function announces it.",
        )
    return ""


def _remarks(shapes: NDArray[np.object_], usable: NDArray[np.bool_], crops: PlannedCrops) -> list[str]:
    said = []
    counts = crops.counts
    if not counts["features"]:
        said.append("The layer holds no feature; the result is empty.")
    if counts["features_without_geometry"]:
        said.append(f"{counts['features_without_geometry']} features have no geometry and get no label.")
    if counts["features_beside_the_imagery"]:
        said.append(
            f"{counts['features_beside_the_imagery']} features lie beside the imagery or the extent and get "
            "no label."
        )
    if crops.blacken and (shapely.get_dimensions(shapes[usable]) < 2).any():
        said.append("Around points and lines nothing is blackened: they have no inside.")
    return said


def _on_imagery(
    geometry: NDArray[np.object_], planned: PlannedGrid, crops: PlannedCrops, *, with_extent: bool
) -> NDArray[np.bool_]:
    """Features whose crop touches a raster's footprint and, with an extent, whose middle lies in it."""
    windows = crop_windows(geometry, crops)
    boxes = np.array([(col, row, col + cols, row + rows) for row, col, rows, cols in planned.footprints])
    tree = shapely.STRtree(shapely.box(*boxes.T))
    row, col, rows, cols = windows.T
    # A hair smaller: a crop that only touches a footprint's edge holds none of its pixels.
    hair = 1e-3
    crop_boxes = shapely.box(col + hair, row + hair, col + cols - hair, row + rows - hair)
    on = np.zeros(len(geometry), np.bool_)
    on[tree.query(crop_boxes, predicate="intersects")[0]] = True
    if with_extent:
        top, left, height, width = planned.region
        bounds = shapely.bounds(geometry).reshape(-1, 4)
        x, y = (bounds[:, 0] + bounds[:, 2]) / 2, (bounds[:, 1] + bounds[:, 3]) / 2
        on &= (x >= left) & (x < left + width) & (y >= top) & (y < top + height)
    return on


def _finite(geometry: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Features that have a place in the grid's coordinate system, one that a window can name."""
    bounds = shapely.bounds(geometry).reshape(-1, 4)
    with np.errstate(invalid="ignore"):
        return np.asarray((np.isfinite(bounds) & (np.abs(bounds) < 2**40)).all(axis=1))


def _layer_crs(out_sr: int | None, infos: Sequence[RasterInfo]) -> str | None:
    known = [info.crs_wkt for info in infos if info.crs_wkt is not None]
    if not known:
        return None
    if out_sr is not None:
        return str(pyproj.CRS.from_epsg(out_sr).to_wkt())
    if all(same_crs(known[0], other) for other in known):
        return known[0]
    return str(pyproj.CRS.from_user_input("EPSG:4326").to_wkt())


def _outline(info: RasterInfo, crs_wkt: str | None) -> shapely.Geometry | None:
    """The image's corners on the map; None where it has no place there."""
    if info.crs_wkt is None or crs_wkt is None:
        return None
    a, b, c, d, e, f = info.transform
    corners = [(0, 0), (info.width, 0), (info.width, info.height), (0, info.height)]
    ring = np.array([(a * x + b * y + c, d * x + e * y + f) for x, y in corners])
    if not same_crs(info.crs_wkt, crs_wkt):
        project = pyproj.Transformer.from_crs(info.crs_wkt, crs_wkt, always_xy=True)
        ring = np.column_stack(project.transform(ring[:, 0], ring[:, 1]))
    return shapely.Polygon(ring)


def _hull(windows: NDArray[np.int64]) -> Window:
    row, col = windows[:, :2].min(axis=0)
    row_stop, col_stop = (windows[:, :2] + windows[:, 2:]).max(axis=0)
    return Window(int(row), int(col), int(row_stop - row), int(col_stop - col))


def _listed(bounds: Iterable[float]) -> str:
    return ", ".join(f"{value:.10g}" for value in bounds)
