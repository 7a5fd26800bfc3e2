"""The plan of an export: where chips lie, how they are numbered, how the work is cut.

Two passes. The labels alone say which positions become chips (this module); a running sum over the
positions, row by row, gives every chip its number before a pixel is read. So the numbers are dense and do not
depend on workers, parts or resuming.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInputError, LabelError, NotFoundError
from tasks.export.chip_grid import ChipGrid
from tasks.export.parameters import ExportParameters
from tasks.imagery import (
    Bounds,
    Grid,
    GridReader,
    RasterInfo,
    Window,
    expand_rasters,
    grid_of_collection,
    inspect_raster,
)
from tasks.imagery.identity import identity_of_files
from tasks.labels import ClassSchema, PixelLabels, VectorLabels, labels_on_grid, read_vector_labels
from tasks.labels.vector import split_layer
from tasks.store import ObjectStore, check_allowed, join, output_folder, run_key
from tasks.training_data.images import check_chip_format
from tasks.training_data.side_files import default_band_names

KIND = "training-data"
PLAN = "plan.json"
# Raised by hand when the chips of an unchanged input change.
SEMANTICS = 1
# Positions whose labels are looked up at a time: bounds the memory, changes nothing.
_POSITIONS_AT_ONCE = 4096


class ExportItem(BaseModel):
    """A raster, or a collection cut as one image, on its grid."""

    model_config = ConfigDict(frozen=True)

    rasters: list[dict[str, Any]]
    grid: dict[str, Any]

    def infos(self) -> list[RasterInfo]:
        """The rasters, in the collection's order."""
        return [RasterInfo.from_dict(values) for values in self.rasters]

    def target(self) -> Grid:
        """The grid that chips are cut on."""
        return Grid.from_dict(self.grid)


class ExportPart(BaseModel):
    """A run of positions of one item: what one worker run cuts.

    Attributes:
        item: index of the item.
        first: first position.
        stop: position after the last one.
        first_number: number of its first chip.
        chips: how many chips it holds.
    """

    model_config = ConfigDict(frozen=True)

    item: int
    first: int
    stop: int
    first_number: int
    chips: int


class ExportPlan(BaseModel):
    """All that workers need, as JSON in the store beside the chips."""

    model_config = ConfigDict(frozen=True)

    folder_uri: str
    run_key: str
    name: str
    parameters: ExportParameters
    bands: tuple[int, ...]
    band_names: tuple[str, ...]
    items: list[ExportItem]
    parts: list[ExportPart]
    classes: list[dict[str, Any]]
    labels: dict[str, Any]

    @property
    def chips(self) -> int:
        """Number of chips of the whole export."""
        return sum(part.chips for part in self.parts)

    @property
    def schema_of_classes(self) -> ClassSchema:
        """The classes."""
        return ClassSchema.from_records(self.classes)


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of an export, before any work."""

    items: list[ExportItem]
    bands: tuple[int, ...]
    band_names: tuple[str, ...]
    label_identity: str
    run_key: str
    folder_uri: str


def inspect_inputs(parameters: ExportParameters) -> Inputs:
    """Look at all inputs without reading pixels or labels; gives the run key and the output folder.

    Raises:
        NotFoundError, RasterError, BadInputError: an input is missing, unreadable or does not fit.
    """
    for uri in (*parameters.input_raster, split_layer(parameters.input_class_data)[0]):
        check_allowed(uri)
    infos = [inspect_raster(uri) for uri in expand_rasters(parameters.input_raster)]
    bands = _common_bands(infos)
    check_chip_format(
        parameters.chip_format, len(bands), np.result_type(*(info.dtype for info in infos)).name
    )
    items = _items(infos, parameters)
    label_identity = _label_identity(parameters.input_class_data)
    decides = parameters.model_dump(
        mode="json", exclude={"input_raster", "input_class_data", "output_location", "chips_per_part"}
    )
    key = run_key(
        {
            "tool": "export_training_data",
            "semantics": SEMANTICS,
            "parameters": decides,
            "layer": split_layer(parameters.input_class_data)[1],
            "rasters": [info.identity for info in infos],
            "labels": label_identity,
        }
    )
    first = infos[0]
    names = default_band_names(
        len(bands),
        [_given_band_name(first.band_names[band], band) for band in bands],
    )
    return Inputs(
        items, bands, names, label_identity, key, output_folder(KIND, parameters.output_location, key)
    )


def make_plan(parameters: ExportParameters, inputs: Inputs) -> ExportPlan:
    """Read the labels and number the chips.

    Raises:
        LabelError: the labels cannot be used, or touch none of the imagery.
    """
    parts: list[ExportPart] = []
    number = parameters.start_index
    counts: dict[str, Any] = {}
    classes: ClassSchema | None = None
    touched = False
    label_bounds: list[str] = []
    labels_by_crs: dict[str | None, VectorLabels] = {}
    for index, item in enumerate(inputs.items):
        crs = item.grid["crs_wkt"]
        if crs not in labels_by_crs:
            labels_by_crs[crs] = read_item_labels(parameters, item)
        labels = labels_by_crs[crs]
        # The schema covers every class of the file, so that items agree.
        classes = classes or labels.schema
        counts = _counts(labels)
        grid = item.target()
        touched = touched or bool(len(labels.query(grid.bounds)))
        label_bounds.append(f"labels {_rounded(labels.bounds)}, imagery {_rounded(grid.bounds)}")
        new = list(_parts(parameters, index, item, labels_on_grid(labels, grid.transform), number))
        number += sum(part.chips for part in new)
        parts += new
    if classes is None or not touched:
        raise LabelError(
            f"The labels {parameters.input_class_data} do not touch the imagery "
            f"({'; '.join(label_bounds[:3])}, as xmin, ymin, xmax, ymax in the imagery's coordinate system).",
            "Check that both show the same place, and that the labels' coordinate reference system is right.",
        )
    if not parts:
        raise LabelError(
            "No chip holds a label: all are left out by min_polygon_overlap_ratio "
            f"{parameters.min_polygon_overlap_ratio}.",
            "Lower min_polygon_overlap_ratio, or choose a larger tile_size.",
        )
    return ExportPlan(
        folder_uri=inputs.folder_uri,
        run_key=inputs.run_key,
        name=_name(parameters.output_location),
        parameters=parameters,
        bands=inputs.bands,
        band_names=inputs.band_names,
        items=inputs.items,
        parts=parts,
        classes=classes.to_records(),
        labels={"uri": parameters.input_class_data, "identity": inputs.label_identity, **counts},
    )


def save_plan(store: ObjectStore, plan: ExportPlan) -> str:
    """Put the plan beside the chips and return its URI."""
    uri = join(plan.folder_uri, PLAN)
    store.put(uri, plan.model_dump_json(indent=1).encode(), content_type="application/json")
    return uri


def plan_in_force(store: ObjectStore, parameters: ExportParameters, inputs: Inputs) -> ExportPlan:
    """The plan of an earlier try of the same run, so that its finished parts stay good; else a new one.

    Inputs of the same content may have moved meanwhile: the addresses of today count.
    """
    try:
        earlier = load_plan(store, join(inputs.folder_uri, PLAN))
    except NotFoundError:
        return make_plan(parameters, inputs)
    return earlier.model_copy(update={"parameters": parameters, "items": inputs.items})


def load_plan(store: ObjectStore, uri: str) -> ExportPlan:
    """The plan at ``uri``."""
    return ExportPlan.model_validate_json(store.get(uri))


def read_item_labels(parameters: ExportParameters, item: ExportItem) -> VectorLabels:
    """The labels in the CRS of an item's grid."""
    return read_vector_labels(
        parameters.input_class_data,
        parameters.classvalue_field,
        item.grid["crs_wkt"],
        buffer_radius=parameters.buffer_radius,
    )


def check_labels_unchanged(plan: ExportPlan) -> None:
    """Refuse labels that are no longer what the plan was made for.

    Raises:
        LabelError: they have changed.
    """
    if _label_identity(plan.parameters.input_class_data) != plan.labels["identity"]:
        raise LabelError(
            f"The labels {plan.parameters.input_class_data} have changed since the export was planned.",
            "Start the export again; it will be a run of its own.",
        )


def chip_grid(parameters: ExportParameters, grid: Grid) -> ChipGrid:
    """The chip positions on a grid."""
    return ChipGrid(grid.rows, grid.cols, parameters.tile_size, parameters.stride_size)


def is_chip(
    parameters: ExportParameters,
    labels: PixelLabels,
    footprints: list[Window],
    windows: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Which windows become chips: those that touch a raster and, unless all are wanted, a label  # (n,)."""
    chosen = np.zeros(len(windows), dtype=bool)
    row, col, rows, cols = windows.T
    for one in footprints:
        chosen |= (
            (row < one.row_stop) & (row + rows > one.row) & (col < one.col_stop) & (col + cols > one.col)
        )
    if parameters.output_nofeature_tiles == "ONLY_TILES_WITH_FEATURES":
        found = labels.in_windows(windows, min_overlap_ratio=parameters.min_polygon_overlap_ratio)
        chosen &= np.array([len(item) > 0 for item in found], dtype=bool)
    return chosen


def _parts(
    parameters: ExportParameters, index: int, item: ExportItem, labels: PixelLabels, first_number: int
) -> Iterator[ExportPart]:
    grid = item.target()
    chips = chip_grid(parameters, grid)
    with GridReader(item.infos(), grid, bands=(0,)) as reader:
        footprints = reader.footprints()
    first, held, number = 0, 0, first_number
    for start in range(0, chips.positions, _POSITIONS_AT_ONCE):
        windows = chips.windows(start, start + _POSITIONS_AT_ONCE)
        for position in start + np.flatnonzero(is_chip(parameters, labels, footprints, windows)):
            held += 1
            if held == parameters.chips_per_part:
                yield _part(index, first, int(position) + 1, number, held)
                first, number, held = int(position) + 1, number + held, 0
    if held:
        yield _part(index, first, chips.positions, number, held)


def _part(item: int, first: int, stop: int, first_number: int, chips: int) -> ExportPart:
    return ExportPart(item=item, first=first, stop=stop, first_number=first_number, chips=chips)


def _items(infos: list[RasterInfo], parameters: ExportParameters) -> list[ExportItem]:
    separately = parameters.processing_mode == "PROCESS_ITEMS_SEPARATELY"
    groups = [[info] for info in infos] if separately else [infos]
    extent: Bounds | None = None
    if parameters.extent is not None:
        xmin, ymin, xmax, ymax = parameters.extent
        extent = (xmin, ymin, xmax, ymax)
    items = []
    for group in groups:
        grid = grid_of_collection(group, cell_size=parameters.cell_size, extent=extent)
        items.append(ExportItem(rasters=[info.to_dict() for info in group], grid=grid.to_dict()))
    return items


def _common_bands(infos: list[RasterInfo]) -> tuple[int, ...]:
    """All bands but alpha, which says where pixels are valid and is no picture."""
    first = infos[0]
    bands = tuple(band for band, kind in enumerate(first.colorinterp) if kind != "alpha")
    for info in infos[1:]:
        other = tuple(band for band, kind in enumerate(info.colorinterp) if kind != "alpha")
        if other != bands or info.dtype != first.dtype:
            raise BadInputError(
                f"{first.uri} has {len(bands)} bands of type {first.dtype}, "
                f"but {info.uri} has {len(other)} of type {info.dtype}.",
                "Export rasters of different kinds in runs of their own.",
            )
    if not bands:
        raise BadInputError(f"{first.uri} has no band but alpha.", "Name a raster with picture bands.")
    return bands


def _given_band_name(name: str, band: int) -> str:
    """The file's own name of a band; empty where the imagery room numbered it."""
    return "" if name == f"Band_{band + 1}" else name


def _label_identity(text: str) -> str:
    store = ObjectStore()
    uri = split_layer(text)[0]
    store.stat(uri)
    files = [uri]
    if uri.lower().endswith(".shp"):
        files += [item.uri for item in store.list(uri[: -len("shp")]) if item.uri != uri]
    return identity_of_files(files, store)


def _counts(labels: VectorLabels) -> dict[str, Any]:
    return {
        "features": len(labels),
        "repaired": labels.repaired,
        "empty": labels.empty,
        "unprojectable": labels.unprojectable,
        "classvalue_field": labels.class_value_field,
        "crs": labels.source_crs,
    }


def _name(output_location: str) -> str:
    return output_location.rstrip("/").rsplit("/", 1)[-1]


def _rounded(bounds: Bounds) -> tuple[float, ...]:
    return tuple(round(value, 2) for value in bounds)
