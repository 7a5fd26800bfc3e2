"""The inputs of an export, checked before any pixel or label is read: options, rasters, grids, run key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from tasks.errors import BadInputError, TrainingDataError
from tasks.export.parameters import ExportParameters
from tasks.imagery import Bounds, Grid, GridReader, RasterInfo, expand_rasters, inspect_raster
from tasks.imagery.collection import export_grid, same_crs
from tasks.imagery.identity import identity_of_files
from tasks.imagery.image_space import image_transform, in_pixel_space
from tasks.labels.attribute_table import side_table_uri
from tasks.labels.raster import is_raster_labels
from tasks.labels.sources import source_files, split_layer
from tasks.store import ObjectStore, check_allowed, output_folder, run_key
from tasks.training_data.formats import format_of
from tasks.training_data.images import check_chip_format
from tasks.training_data.sample import Format
from tasks.training_data.side_files import default_band_names

KIND = "training-data"
# Raised by hand when the chips of an unchanged input change.
SEMANTICS = 4
_AROUND_FEATURES = ("Labeled_Tiles", "Imagenet")
_TWO_RASTERS = ("Classified_Tiles", "Export_Tiles", "CycleGAN")


class Bands(BaseModel):
    """The picture bands of a collection: zero-based indices, names, common type."""

    model_config = ConfigDict(frozen=True)

    indices: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    dtype: str = ""


class ExportItem(BaseModel):
    """A raster, or a collection cut as one image, on its grid.

    Attributes:
        side: the folder it goes to (CycleGAN's A or B); empty for the root.
        rasters: the collection, in order.
        bands: its picture bands.
        rasters2: the second collection, read on the same grid.
        bands2: its picture bands.
        grid: the grid that chips are cut on.
        quarters: by how many quarters every chip is turned (IMAGE_SPACE).
    """

    model_config = ConfigDict(frozen=True)

    side: str = ""
    rasters: list[dict[str, Any]]
    bands: Bands
    rasters2: list[dict[str, Any]] = []
    bands2: Bands = Bands()
    grid: dict[str, Any]
    quarters: int = 0

    def infos(self) -> list[RasterInfo]:
        """The rasters, in the collection's order."""
        return [RasterInfo.from_dict(values) for values in self.rasters]

    def infos2(self) -> list[RasterInfo]:
        """The second rasters, in the collection's order."""
        return [RasterInfo.from_dict(values) for values in self.rasters2]

    def target(self) -> Grid:
        """The grid that chips are cut on."""
        return Grid.from_dict(self.grid)


Collection = tuple[list[RasterInfo], Bands]


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of an export, before any work.

    Attributes:
        label_identities: by role ("labels", "mask", "instances", "schema"), what would change if they did.
        notes: what a person should know, though it is no error.
    """

    items: list[ExportItem]
    label_identities: dict[str, str]
    run_key: str
    folder_uri: str
    notes: list[str] = field(default_factory=list)


def inspect_inputs(parameters: ExportParameters) -> Inputs:
    """Look at all inputs without reading pixels or labels; gives the run key and the output folder.

    Raises:
        NotFoundError, RasterError, BadInputError: an input is missing, unreadable or does not fit.
    """
    chosen = format_of(parameters.metadata_format)
    check_options(parameters, chosen)
    named = _named_labels(parameters)
    second = parameters.additional_input_raster or []
    for uri in (*parameters.input_raster, *second, *named.values()):
        check_allowed(split_layer(uri)[0])
    infos = [inspect_raster(uri) for uri in expand_rasters(parameters.input_raster)]
    infos2 = [inspect_raster(uri) for uri in expand_rasters(second)] if second else []
    first, other = (infos, _bands(infos)), (infos2, _bands(infos2))
    for _, found in (first, other):
        if found.indices:
            check_chip_format(parameters.chip_format, len(found.indices), found.dtype)
    if len(chosen.sides) == 2:
        nothing: Collection = ([], Bands())
        items = [
            *_items(first, nothing, parameters, chosen.sides[0]),
            *_items(other, nothing, parameters, chosen.sides[1]),
        ]
    else:
        items = _items(first, other, parameters, chosen.sides[0])
    identities = {role: _label_identity(uri) for role, uri in named.items()}
    exclude = {
        "input_raster",
        "additional_input_raster",
        "output_location",
        "chips_per_part",
        *_ROLES.values(),
    }
    key = run_key(
        {
            "tool": "export_training_data",
            "semantics": SEMANTICS,
            "parameters": parameters.model_dump(mode="json", exclude=exclude),
            "layers": {role: split_layer(uri)[1] for role, uri in named.items()},
            "rasters": [info.identity for info in infos],
            "rasters2": [info.identity for info in infos2],
            "labels": identities,
        }
    )
    folder = output_folder(KIND, parameters.output_location, key)
    return Inputs(items, identities, key, folder, _notes(infos, infos2))


def check_options(parameters: ExportParameters, chosen: Format) -> None:
    """Refuse options that do not go with the metadata format, which ArcGIS's tool would ignore.

    Raises:
        BadInputError: what does not go together, and what to set instead.
    """
    name = chosen.name
    if chosen.needs_labels and not parameters.input_class_data:
        raise BadInputError(f"{name} needs labels.", "Name them in input_class_data.")
    if parameters.additional_input_raster and name not in _TWO_RASTERS:
        raise BadInputError(
            f"{name} has no place for a second image.",
            f"Leave additional_input_raster empty, or export as one of: {', '.join(_TWO_RASTERS)}.",
        )
    if len(chosen.sides) == 2 and not parameters.additional_input_raster:
        raise BadInputError(
            f"{name} pairs two kinds of pictures.", "Name the second one in additional_input_raster."
        )
    panoptic = "instance data" in chosen.needs
    if panoptic != bool(parameters.input_instance_data):
        raise BadInputError(
            f"{name} needs labels of single objects." if panoptic else f"{name} takes no instance data.",
            "Name them in input_instance_data."
            if panoptic
            else "Leave input_instance_data empty, or export as Panoptic_Segmentation.",
        )
    if name not in _AROUND_FEATURES and (parameters.blacken_around_feature or not parameters.fix_chip_size):
        raise BadInputError(
            f"{name} is not cut around features, so blacken_around_feature and fix_chip_size mean nothing.",
            f"Leave both as they are, or export as one of: {', '.join(_AROUND_FEATURES)}.",
        )
    if not parameters.fix_chip_size and parameters.rotation_angle % 90:
        raise BadInputError(
            "A feature's bounding box is turned by quarters only.",
            "Set rotation_angle to a multiple of 90, or fix_chip_size to true.",
        )
    if parameters.reference_system != "MAP_SPACE" and (parameters.cell_size or parameters.extent):
        raise BadInputError(
            f"In {parameters.reference_system} chips are cut from the raw image, which has neither a cell "
            "size nor an extent in the map.",
            "Leave cell_size and extent empty; input_mask_polygons bounds the area.",
        )


def is_raster(uri: str) -> bool:
    """Whether labels are given as a classified raster."""
    return is_raster_labels(uri)


_ROLES = {
    "labels": "input_class_data",
    "mask": "input_mask_polygons",
    "instances": "input_instance_data",
    "schema": "class_schema",
}


def _named_labels(parameters: ExportParameters) -> dict[str, str]:
    """What is named besides imagery, by role."""
    return {role: uri for role, name in _ROLES.items() if (uri := getattr(parameters, name))}


def _label_identity(uri: str) -> str:
    store = ObjectStore()
    if is_raster(uri):
        names = expand_rasters([uri])
        tables = [table for name in names if (table := side_table_uri(name, store)) is not None]
        beside = identity_of_files(tables, store) if tables else ""
        return run_key([[inspect_raster(name).identity for name in names], beside])
    return identity_of_files(source_files(uri), store)


def label_identities(parameters: ExportParameters) -> dict[str, str]:
    """As :attr:`Inputs.label_identities`, of now."""
    return {role: _label_identity(uri) for role, uri in _named_labels(parameters).items()}


def _items(
    first: Collection, second: Collection, parameters: ExportParameters, side: str
) -> list[ExportItem]:
    infos = first[0]
    separately = parameters.processing_mode == "PROCESS_ITEMS_SEPARATELY"
    groups = [[info] for info in infos] if separately else [infos]
    if parameters.reference_system != "MAP_SPACE":
        return _raw_items(groups, first[1], second, parameters, side)
    items = []
    for group in groups:
        extent = _extent_for(group[0], infos[0], parameters)
        if extent is not None and separately and not _meet(group[0].bounds, extent):
            continue  # the area leaves some items of a collection out
        grid = export_grid(group, cell_size=parameters.cell_size, extent=extent)
        items.append(
            ExportItem(
                side=side,
                rasters=[info.to_dict() for info in group],
                bands=first[1],
                rasters2=[info.to_dict() for info in _within(grid, second[0]) or second[0][:1]],
                bands2=second[1],
                grid=grid.to_dict(),
            )
        )
    if not items:
        raise BadInputError(
            f"The extent {parameters.extent} touches none of the {len(infos)} rasters.",
            "Give the extent as xmin, ymin, xmax, ymax in the first raster's coordinate system.",
        )
    if second[0] and not any(_within(item.target(), second[0]) for item in items):
        raise BadInputError(
            f"{second[0][0].address} does not touch the imagery {infos[0].address}.",
            "Check that additional_input_raster shows the same place, and its coordinate reference system.",
        )
    return items


def _extent_for(info: RasterInfo, first: RasterInfo, parameters: ExportParameters) -> Bounds | None:
    """The extent, which is given in the first raster's CRS, in the CRS of ``info``."""
    if parameters.extent is None:
        return None
    xmin, ymin, xmax, ymax = parameters.extent
    if info.crs_wkt is None or first.crs_wkt is None or same_crs(info.crs_wkt, first.crs_wkt):
        return (xmin, ymin, xmax, ymax)
    left, bottom, right, top = transform_bounds(
        CRS.from_wkt(first.crs_wkt), CRS.from_wkt(info.crs_wkt), xmin, ymin, xmax, ymax, densify_pts=21
    )
    return (left, bottom, right, top)


def _meet(a: Bounds, b: Bounds) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _within(grid: Grid, infos: list[RasterInfo]) -> list[RasterInfo]:
    """The rasters that touch the grid."""
    if not infos:
        return []
    with GridReader(infos, grid, (0,)) as reader:
        return [info for info, window in zip(infos, reader.footprints(), strict=True) if not window.is_empty]


def _raw_items(
    groups: list[list[RasterInfo]],
    bands: Bands,
    second: Collection,
    parameters: ExportParameters,
    side: str,
) -> list[ExportItem]:
    """Raw images, each with its own second one: they are paired by order, not by place."""
    infos2, bands2 = second
    if infos2 and len(infos2) != len(groups):
        raise BadInputError(
            f"In {parameters.reference_system} additional_input_raster must name as many images as "
            f"input_raster, in the same order; there are {len(groups)} and {len(infos2)}.",
            "Name them in pairs, or export in MAP_SPACE.",
        )
    return [
        _raw_item((group, bands), (infos2[index : index + 1], bands2), parameters, side)
        for index, group in enumerate(groups)
    ]


def _raw_item(first: Collection, second: Collection, parameters: ExportParameters, side: str) -> ExportItem:
    (group, bands), (infos2, bands2) = first, second
    if len(group) > 1:
        raise BadInputError(
            f"In {parameters.reference_system} rasters cannot be one mosaic.",
            "Set processing_mode to PROCESS_ITEMS_SEPARATELY.",
        )
    info = group[0]
    quarters = 0
    by_map = parameters.input_class_data and not is_raster(parameters.input_class_data)
    if parameters.reference_system == "IMAGE_SPACE" or by_map or parameters.input_mask_polygons:
        transform = image_transform(info)
        quarters = transform.up_quarters if parameters.reference_system == "IMAGE_SPACE" else 0
    for other in infos2:
        if (other.height, other.width) != (info.height, info.width):
            raise BadInputError(
                f"In {parameters.reference_system} {other.address} must have the size of {info.address}.",
                "Export in MAP_SPACE, or give images of one size.",
            )
    return ExportItem(
        side=side,
        rasters=[in_pixel_space(info).to_dict()],
        bands=bands,
        rasters2=[in_pixel_space(other).to_dict() for other in infos2],
        bands2=bands2,
        grid=Grid(None, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), info.height, info.width).to_dict(),
        quarters=quarters,
    )


def _bands(infos: list[RasterInfo]) -> Bands:
    """All bands but alpha, which says where pixels are valid and is no picture."""
    if not infos:
        return Bands()
    first = infos[0]
    indices = _picture_bands(first)
    for info in infos[1:]:
        other = _picture_bands(info)
        if other != indices:
            raise BadInputError(
                f"{first.address} has {len(indices)} bands, but {info.address} has {len(other)}.",
                "Export rasters with different bands in runs of their own.",
            )
    if not indices:
        raise BadInputError(f"{first.address} has no band but alpha.", "Name a raster with picture bands.")
    names = default_band_names(
        len(indices), [_given_band_name(first.band_names[band], band) for band in indices]
    )
    dtype = np.result_type(*(np.dtype(info.dtype) for info in infos))
    if dtype.kind not in "uif":
        raise TrainingDataError(
            f"{first.address} has pixels of type {dtype}.", "Give integers or real numbers."
        )
    return Bands(indices=indices, names=names, dtype=dtype.name)


def _picture_bands(info: RasterInfo) -> tuple[int, ...]:
    return tuple(band for band, kind in enumerate(info.colorinterp) if kind != "alpha")


def _given_band_name(name: str, band: int) -> str:
    """The file's own name of a band; empty where the imagery room numbered it."""
    return "" if name == f"Band_{band + 1}" else name


def _notes(infos: list[RasterInfo], infos2: list[RasterInfo]) -> list[str]:
    notes = []
    alpha = [
        f"band {band} of {info.address}"
        for info in (*infos, *infos2)
        for band, kind in enumerate(info.colorinterp, start=1)
        if kind == "alpha"
    ]
    if alpha:
        notes.append(
            f"Left out of the chips as alpha: {', '.join(alpha)}. If it is a picture band (near infrared, "
            "say), mend its colour interpretation, for example with gdal_edit.py -colorinterp_4 undefined"
        )
    types = sorted({info.dtype for info in infos})
    if len(types) > 1:
        notes.append(f"The rasters have different types ({', '.join(types)}); chips have the widest.")
    return notes
