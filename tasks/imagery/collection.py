"""Collections: ordered sets of rasters, and the target grid that they are read on."""

from __future__ import annotations

import fnmatch
import glob
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import BadInputError, NotFoundError
from tasks.imagery.grid import Bounds, Grid
from tasks.imagery.identity import unsigned
from tasks.imagery.items import RASTER_SUFFIXES, ListedRaster, is_item_document, listed_rasters
from tasks.settings import settings
from tasks.store import ObjectStore, is_local, iter_files, join, read_manifest

if TYPE_CHECKING:
    from tasks.imagery.raster import RasterInfo

FINER_BY = 0.05
"""Share by which a raster's cells must be finer than the first raster's to decide an export's cell size."""

NEIGHBOURS_DEGREES = 1.0
"""Longitudes that lie empty between imagery on both sides of the antimeridian that is one place."""

_FEATURES = (".shp", ".gpkg", ".gdb", ".fgb")
_REMEDY_NO_CRS = (
    "Assign the reference system (for example with `gdal_edit.py -a_srs EPSG:… raster.tif`), "
    "or work in pixel space where the tool offers it."
)


def expand_rasters(inputs: Iterable[str]) -> list[str]:
    """The rasters that ``inputs`` name, in order, each once.

    Args:
        inputs: raster URIs and paths (taken as they are), ``s3://…/`` prefixes and local folders
            (everything below with a raster's name ending, sorted by name), patterns with ``*``, ``?`` or
            ``[…]``. A folder that Chipline published is read through its manifest. A STAC item, an
            ItemCollection (JSON) or GeoParquet of items, perhaps with ``#`` and the key of an asset, stands
            for the rasters that it lists.

    Raises:
        NotFoundError: a folder, prefix, pattern or document holds no raster.
        BadInputError: nothing was named at all, or a document that lists rasters cannot be used.
    """
    return [raster.uri for raster in list_rasters(inputs)]


def list_rasters(inputs: Iterable[str]) -> list[ListedRaster]:
    """The same as :func:`expand_rasters`, with what documents say about their rasters."""
    store = ObjectStore()
    found: dict[str, ListedRaster] = {}
    for text in inputs:
        if is_item_document(text):
            rasters = list(listed_rasters(text, store))
            _some([raster.uri for raster in rasters], text)
        else:
            _refuse_features(text)
            rasters = [ListedRaster(uri) for uri in _expanded(text, store)]
        for raster in rasters:
            found.setdefault(raster.uri, raster)
    if not found:
        raise BadInputError("No input raster is given.", "Give at least one raster, folder or prefix.")
    return list(found.values())


def _refuse_features(text: str) -> None:
    path = text.partition("|")[0].rstrip("/").lower()
    if path.endswith(_FEATURES) and not (path.endswith(".gpkg") and "GPKG" in settings().gdal_drivers):
        raise BadInputError(
            f"{unsigned(text)} is a layer of features, where imagery is needed; images that are attached to "
            "features are not read.",
            "Export the attachments into a folder, and give the folder: each image is then one raster "
            "(processing_mode PROCESS_ITEMS_SEPARATELY).",
        )


def grid_of_raster(info: RasterInfo, *, map_space: bool = True) -> Grid:
    """The raster's own grid.

    Args:
        info: the raster.
        map_space: whether a CRS is needed; without it a raster in pixel space is accepted.

    Raises:
        BadInputError: the raster has no CRS where one is needed, or is rotated or south-up.
    """
    if map_space:
        _require_crs(info)
    _require_north_up(info)
    return Grid(info.crs_wkt, info.transform, info.height, info.width)


def grid_of_collection(
    infos: Sequence[RasterInfo],
    *,
    out_sr: str | None = None,
    cell_size: float | tuple[float, float] | None = None,
    extent: Bounds | None = None,
    snap: RasterInfo | None = None,
) -> Grid:
    """The target grid over all rasters: their joint extent on the first raster's grid.

    Args:
        infos: the collection, in order; one raster is a collection too.
        out_sr: target CRS (``EPSG:…`` or WKT); needed where the rasters do not share one.
        cell_size: target cell size in units of the target CRS; the first raster's by default.
        extent: (xmin, ymin, xmax, ymax) in the target CRS; the part of the collection inside it, snapped
            outwards to whole cells.
        snap: a raster in the target CRS; the grid's corner is its corner plus whole cells.

    Returns:
        Without ``snap`` a grid whose cells coincide with the first raster's cells where CRS and cell size are
        its own, whose corner is the first raster's corner plus whole cells where only the cell size differs,
        and whose coordinates are multiples of the cell size where the CRS differs.

    Raises:
        BadInputError: no CRS, several CRS without ``out_sr``, a rotated or south-up raster without
            ``out_sr`` or ``cell_size`` (its pixels would have to be resampled), an extent that touches no
            raster, a ``snap`` in another CRS, or values that make no sense.
    """
    if not infos:
        raise BadInputError("The collection holds no raster.", "Give at least one raster.")
    for info in infos:
        _require_crs(info)
    resampled = out_sr is not None or cell_size is not None or snap is not None
    if not resampled:
        for info in infos:
            _require_north_up(info)
    target_wkt = _target_crs(infos, out_sr)
    reference = infos[0]
    if same_crs(reference.crs_wkt, target_wkt):
        a, b, c, d, e, f = reference.transform
        cell_x, cell_y = _cell_size(cell_size, _own_cell_size(reference))
        north_up = not (b or d) and a > 0 > e
        anchor_x, anchor_y = (c, f) if north_up else (reference.bounds[0], reference.bounds[3])
    else:
        cell_x, cell_y = _cell_size(cell_size, _warped_cell_size(reference, target_wkt))
        anchor_x = anchor_y = 0.0
    if snap is not None:
        if not same_crs(snap.crs_wkt, target_wkt):
            raise BadInputError(
                f"The snap raster {snap.address} is in {crs_name(snap.crs_wkt)}, the output in "
                f"{crs_name(target_wkt)}.",
                "Give a snap_raster in the output's reference system, or set out_sr to the snap raster's.",
            )
        anchor_x, anchor_y = snap.bounds[0], snap.bounds[3]
    bounds = union_of_bounds([bounds_in(info, target_wkt) for info in infos])
    return _snapped(target_wkt, (anchor_x, anchor_y), (cell_x, cell_y), bounds, extent)


def export_grid(
    infos: Sequence[RasterInfo],
    *,
    cell_size: float | None = None,
    cell_size_y: float | None = None,
    extent: Bounds | None = None,
    pixel_space: bool = False,
) -> Grid:
    """The grid that chips are cut on: every raster is taken as it is, none is refused for how it lies.

    The reference system is the first raster's, the cell size the finest of all rasters, the origin the
    first raster's upper left corner. The first raster's own cell size stays unless another one is finer by
    more than :data:`FINER_BY`, so that rasters in neighbouring zones do not blur the first one. A rotated or
    south-up raster comes first like any other: its grid is north-up, with cells as long as its pixels'
    sides, at the corner of its bounding box.

    Args:
        infos: the collection, in order; one raster is a collection too.
        cell_size: cell size in units of the first raster's CRS instead.
        cell_size_y: height of a cell where it differs from ``cell_size``.
        extent: (xmin, ymin, xmax, ymax) in the first raster's CRS (in pixel space x is the column and y
            minus the row); the part of the collection inside it, snapped outwards to whole cells.
        pixel_space: the raw image of a single raster, with or without CRS: cells are its pixels.

    Raises:
        BadInputError: no raster, a raster without CRS in map space, several rasters or a cell size in pixel
            space, an extent that touches no raster, or values that make no sense.
    """
    if not infos:
        raise BadInputError("The collection holds no raster.", "Give at least one raster.")
    if pixel_space:
        return _grid_in_pixel_space(infos, cell_size, cell_size_y, extent)
    target_wkt, *_ = [_require_crs(info) for info in infos]
    if cell_size is not None:
        cell_x, cell_y = _cell_size((cell_size, cell_size if cell_size_y is None else cell_size_y), (0, 0))
    elif cell_size_y is not None:
        raise BadInputError("A cell's height is given without its width.", "Give cell_size, too.")
    else:
        cell_x, cell_y = _finest_cell_size(infos, target_wkt)
    anchor = (infos[0].bounds[0], infos[0].bounds[3])
    bounds = union_of_bounds([bounds_in(info, target_wkt, within=extent) for info in infos])
    return _snapped(target_wkt, anchor, (cell_x, cell_y), bounds, extent)


def bounds_in(info: RasterInfo, crs_wkt: str | None, *, within: Bounds | None = None) -> Bounds:
    """(xmin, ymin, xmax, ymax) of the raster's footprint in another CRS.

    Args:
        info: the raster.
        crs_wkt: the other CRS.
        within: an area there; with it, only the part of the footprint that may lie in the area counts, so
            that a raster of the whole world has a footprint wherever the other CRS is valid.

    Raises:
        BadInputError: the footprint cannot be expressed there.
    """
    if same_crs(info.crs_wkt, crs_wkt):
        return info.bounds
    own = _clipped_where(info, crs_wkt, within) if within is not None else info.bounds
    bounds = _warped_bounds(info.crs_wkt, crs_wkt, own)
    if bounds is None:
        raise _not_expressible(info)
    if bounds[0] > bounds[2]:  # PROJ's way to say that it runs over the edge of the map
        raise BadInputError(
            f"{info.address} crosses the antimeridian, where a grid in {crs_name(crs_wkt)} has two edges.",
            "Choose an out_sr whose map is in one piece there (a UTM zone, EPSG:3832), or leave it out.",
        )
    return bounds


def _warped_bounds(from_wkt: str | None, to_wkt: str | None, bounds: Bounds) -> Bounds | None:
    import rasterio.errors
    from rasterio.crs import CRS
    from rasterio.warp import transform_bounds

    try:
        found = transform_bounds(CRS.from_wkt(from_wkt), CRS.from_wkt(to_wkt), *bounds, densify_pts=21)
    except rasterio.errors.RasterioError:
        return None
    xmin, ymin, xmax, ymax = found
    return (xmin, ymin, xmax, ymax) if all(math.isfinite(value) for value in found) else None


def _clipped_where(info: RasterInfo, crs_wkt: str | None, within: Bounds) -> Bounds:
    """The raster's bounds, in its own CRS, without what cannot lie in an area of another CRS."""
    there = _warped_bounds(crs_wkt, info.crs_wkt, within)
    if there is None or there[0] >= there[2] or there[1] >= there[3]:
        return info.bounds
    # Edges are curved, and only points on them were looked at.
    margin_x, margin_y = 0.01 * (there[2] - there[0]), 0.01 * (there[3] - there[1])
    xmin, ymin, xmax, ymax = info.bounds
    own = (
        max(xmin, there[0] - margin_x),
        max(ymin, there[1] - margin_y),
        min(xmax, there[2] + margin_x),
        min(ymax, there[3] + margin_y),
    )
    return own if own[0] < own[2] and own[1] < own[3] else info.bounds


def same_crs(first_wkt: str | None, second_wkt: str | None) -> bool:
    """Whether two WKT texts mean one reference system; two times None is pixel space."""
    if first_wkt == second_wkt:
        return True
    if first_wkt is None or second_wkt is None:
        return False
    from rasterio.crs import CRS

    return bool(CRS.from_wkt(first_wkt) == CRS.from_wkt(second_wkt))


def crs_name(crs_wkt: str | None) -> str:
    """A short name for messages: ``EPSG:32612`` or the WKT's own name."""
    if crs_wkt is None:
        return "no reference system"
    from rasterio.crs import CRS

    authority = CRS.from_wkt(crs_wkt).to_authority()
    return ":".join(authority) if authority else crs_wkt.split('"')[1]


def check_one_piece(crs_wkt: str, bounds: Sequence[Bounds]) -> None:
    """Refuse neighbours on both sides of the antimeridian, which a grid of degrees puts at opposite ends.

    Imagery all around the world, and of places far apart, lies well on such a grid.

    Args:
        crs_wkt: of the grid.
        bounds: (xmin, ymin, xmax, ymax) there, of what is computed of each raster.

    Raises:
        BadInputError: more than half of the world's longitudes lie empty between them, and next to nothing
            on the other way round.
    """
    from rasterio.crs import CRS

    if not CRS.from_wkt(crs_wkt).is_geographic:
        return
    spans = sorted((xmin, xmax) for xmin, _, xmax, _ in bounds)
    reach = spans[0][1] if spans else 0.0
    farthest = max((east for _, east in spans), default=0.0)
    around = 360 - (farthest - spans[0][0]) if spans else 360.0
    for west, east in spans:
        if west - reach > 180 and around < NEIGHBOURS_DEGREES:
            raise BadInputError(
                f"The imagery lies on both sides of the antimeridian, where a grid in {crs_name(crs_wkt)} "
                "has two edges.",
                "Choose an out_sr whose map is in one piece there (a UTM zone, EPSG:3832), process the "
                "rasters separately, or give an extent on one side.",
            )
        reach = max(reach, east)


def union_of_bounds(bounds: Sequence[Bounds]) -> Bounds:
    """The smallest (xmin, ymin, xmax, ymax) that holds all of them."""
    return (
        min(one[0] for one in bounds),
        min(one[1] for one in bounds),
        max(one[2] for one in bounds),
        max(one[3] for one in bounds),
    )


def _snapped(
    crs_wkt: str | None,
    anchor: tuple[float, float],
    cell: tuple[float, float],
    bounds: Bounds,
    extent: Bounds | None,
) -> Grid:
    if extent is not None:
        bounds = _clipped(bounds, extent)
    # One cell at the anchor serves to snap; its window of the bounds is the grid.
    one = Grid(crs_wkt, (cell[0], 0.0, anchor[0], 0.0, -cell[1], anchor[1]), 1, 1)
    window = one.window_of_bounds(bounds)
    if window.is_empty:
        raise BadInputError(
            f"The extent {bounds} is smaller than a cell of {cell[0]} x {cell[1]}.", "Give a larger extent."
        )
    return Grid(crs_wkt, one.window_transform(window), window.rows, window.cols)


def _grid_in_pixel_space(
    infos: Sequence[RasterInfo], cell_size: float | None, cell_size_y: float | None, extent: Bounds | None
) -> Grid:
    if len(infos) > 1:
        raise BadInputError(
            f"{len(infos)} rasters cannot share one pixel space.",
            "Process the rasters separately (PROCESS_ITEMS_SEPARATELY), or work in map space.",
        )
    if (cell_size or 1) != 1 or (cell_size_y or 1) != 1:
        raise BadInputError(
            f"In pixel space a cell is a pixel; {cell_size_y or cell_size} has no meaning there.",
            "Leave cell_size out, or work in map space.",
        )
    info = infos[0]
    bounds = (0.0, -float(info.height), float(info.width), 0.0)
    return _snapped(None, (0.0, 0.0), (1.0, 1.0), bounds, extent)


def _own_cell_size(info: RasterInfo) -> tuple[float, float]:
    """Lengths of a pixel's sides, map units: (nearest to the x direction, nearest to the y direction)."""
    a, b, _, d, e, _ = info.transform
    along_cols, along_rows = math.hypot(a, d), math.hypot(b, e)
    # Turned by about a quarter, columns run along y.
    return (along_rows, along_cols) if abs(d) > abs(a) else (along_cols, along_rows)


def _finest_cell_size(infos: Sequence[RasterInfo], target_wkt: str) -> tuple[float, float]:
    finest = _own_cell_size(infos[0])
    limit = math.sqrt(finest[0] * finest[1]) / (1 + FINER_BY)
    for info in infos[1:]:
        same = same_crs(info.crs_wkt, target_wkt)
        cell = _own_cell_size(info) if same else _warped_cell_size(info, target_wkt)
        side = math.sqrt(cell[0] * cell[1])
        if side < limit:
            finest, limit = cell, side
    return finest


def _target_crs(infos: Sequence[RasterInfo], out_sr: str | None) -> str:
    if out_sr is not None:
        import rasterio.errors
        from rasterio.crs import CRS

        try:
            return str(CRS.from_user_input(out_sr).to_wkt())
        except (rasterio.errors.CRSError, ValueError) as error:
            raise BadInputError(
                f"The output reference system {out_sr!r} is not known.", "Give it as EPSG:<code> or as WKT."
            ) from error
    first = infos[0]
    first_wkt = _require_crs(first)
    for info in infos[1:]:
        if not same_crs(first_wkt, info.crs_wkt):
            raise BadInputError(
                f"{first.address} is in {crs_name(first.crs_wkt)} and "
                f"{info.address} is in {crs_name(info.crs_wkt)}.",
                "Name the output's reference system with out_sr, or process the rasters separately "
                "(PROCESS_ITEMS_SEPARATELY).",
            )
    return first_wkt


def _require_crs(info: RasterInfo) -> str:
    if info.crs_wkt is None:
        raise BadInputError(f"{info.address} has no coordinate reference system.", _REMEDY_NO_CRS)
    return info.crs_wkt


def _require_north_up(info: RasterInfo) -> None:
    a, b, _, d, e, _ = info.transform
    if b or d or a <= 0 or e >= 0:
        kind = "rotated" if b or d else "not north-up"
        raise BadInputError(
            f"{info.address} is {kind} (transform {info.transform}).",
            "Warp it to a north-up grid first (`gdalwarp in.tif out.tif`), or give cell_size or out_sr, "
            "which resamples it, or work in pixel space where the tool offers it.",
        )


def _cell_size(
    given: float | tuple[float, float] | None, default: tuple[float, float]
) -> tuple[float, float]:
    if given is None:
        return default
    cell_x, cell_y = given if isinstance(given, tuple) else (given, given)
    if not (math.isfinite(cell_x) and math.isfinite(cell_y) and cell_x > 0 and cell_y > 0):
        raise BadInputError(
            f"The cell size {given} is not a positive number.", "Give it in units of the output's CRS."
        )
    return (cell_x, cell_y)


def _warped_cell_size(info: RasterInfo, target_wkt: str) -> tuple[float, float]:
    import rasterio.errors
    from rasterio.crs import CRS
    from rasterio.warp import calculate_default_transform

    xmin, ymin, xmax, ymax = info.bounds
    cell_x, cell_y = _own_cell_size(info)
    # The bounding box of a rotated raster holds more pixels than the raster.
    cols, rows = max(1, round((xmax - xmin) / cell_x)), max(1, round((ymax - ymin) / cell_y))
    try:
        transform, _, _ = calculate_default_transform(
            CRS.from_wkt(info.crs_wkt), CRS.from_wkt(target_wkt), cols, rows, *info.bounds
        )
    except rasterio.errors.RasterioError as error:
        raise _not_expressible(info) from error
    return (abs(float(transform[0])), abs(float(transform[4])))


def _clipped(bounds: Bounds, extent: Bounds) -> Bounds:
    xmin, ymin, xmax, ymax = extent
    if not (xmin < xmax and ymin < ymax):
        raise BadInputError(
            f"The extent {extent} is empty.", "Give xmin, ymin, xmax, ymax with xmin < xmax and ymin < ymax."
        )
    clipped = (max(xmin, bounds[0]), max(ymin, bounds[1]), min(xmax, bounds[2]), min(ymax, bounds[3]))
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise BadInputError(
            f"The extent {extent} does not touch the imagery, which covers {bounds}.",
            "Give the extent in units of the output's reference system, as xmin, ymin, xmax, ymax.",
        )
    return clipped


def _not_expressible(info: RasterInfo) -> BadInputError:
    return BadInputError(
        f"The footprint of {info.address} cannot be expressed in the target reference system.",
        "Choose an out_sr that is valid where the raster lies.",
    )


def _expanded(text: str, store: ObjectStore) -> list[str]:
    if text.startswith("s3://"):
        return _expanded_objects(text, store)
    if not is_local(text):
        return [text]
    text = text.removeprefix("file://")
    path = Path(text)
    if path.is_dir():
        folder = str(path.absolute())
        published = read_manifest(store, folder) is not None
        names = _published(folder, store) if published else _files_below(path)
        return _some([name for name in names if _is_raster(name)], text)
    if any(character in text for character in "*?[") and not path.exists():
        matches = sorted(name for name in glob.glob(text, recursive=True) if Path(name).is_file())  # noqa: PTH207
        return _some([os.path.abspath(name) for name in matches if _is_raster(name)], text)  # noqa: PTH100
    return [os.path.abspath(text)]  # noqa: PTH100 (links stay: side-car files lie beside the link)


def _expanded_objects(text: str, store: ObjectStore) -> list[str]:
    if text.endswith("/"):
        folder = text.rstrip("/")
        if read_manifest(store, folder) is not None:
            return _some([name for name in _published(folder, store) if _is_raster(name)], text)
        return _some(sorted(found.uri for found in store.list(text) if _is_raster(found.uri)), text)
    if any(character in text for character in "*?["):
        fixed = min(text.index(character) for character in "*?[" if character in text)
        prefix = text[: text.rindex("/", 0, fixed) + 1]
        matches = sorted(found.uri for found in store.list(prefix) if fnmatch.fnmatchcase(found.uri, text))
        return _some([name for name in matches if _is_raster(name)], text)
    return [text]


def _published(folder: str, store: ObjectStore) -> list[str]:
    """What a published folder was made for where its manifest says so (a preview is no raster to work on)."""
    manifest = read_manifest(store, folder)
    outputs = manifest.details.get("outputs") if manifest is not None else None
    if outputs:
        return [join(folder, output["path"]) for output in outputs]
    return sorted(join(folder, record.path) for record in iter_files(store, folder))


def _files_below(folder: Path) -> list[str]:
    return sorted(str(path.absolute()) for path in folder.rglob("*") if path.is_file())


def _is_raster(name: str) -> bool:
    return name.lower().endswith(RASTER_SUFFIXES)


def _some(rasters: list[str], text: str) -> list[str]:
    if not rasters:
        raise NotFoundError(
            f"No raster was found at {text}.",
            f"Check the address; files that end in {', '.join(RASTER_SUFFIXES)} count as rasters.",
        )
    return rasters
