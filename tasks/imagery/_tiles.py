"""XYZ tiles: ``https://…/{z}/{x}/{y}.png#zoom=18``, in Web Mercator, as maps on the web use them."""

from __future__ import annotations

import math
import re

from tasks.errors import BadInputError, NotFoundError, RasterError
from tasks.imagery._service_address import Address, four_numbers
from tasks.imagery._service_documents import RGBA, Band, Layout, document, element, is_known_dtype
from tasks.imagery._service_http import Sample, fetch_sample

OPTIONS = ("zoom", "bounds")
_HALF_WORLD = 20_037_508.342789244  # half the equator of EPSG:3857, m
_MAX_LATITUDE = 85.0511287798066
_MAX_SIDE_PX = 2**30  # GDAL counts pixels in 32 bits
_PLACEHOLDERS = {"z", "x", "y", "-y"}


def describe(address: Address) -> tuple[str, str]:
    """GDAL's document and what identifies the tiles' grid.

    Raises:
        BadInputError: the template or the words behind ``#`` are not usable.
        NotFoundError: no tile was found anywhere near.
        RasterError: the server answers with something that is no tile.
    """
    template = address.without((), safe=",:/{}").rstrip("?&")
    _check_template(template)
    zoom = _zoom(address)
    window = _tile_window(address, zoom)  # columns and rows of tiles: first, stop
    _check_size(zoom, window, 256)
    sample = _sample(template, zoom, window)
    side = _side(sample)
    _check_size(zoom, window, side)
    tiles = 2**zoom
    col, row, col_stop, row_stop = window
    cell = 2 * _HALF_WORLD / (tiles * side)
    transform = (cell, 0.0, -_HALF_WORLD + col * side * cell, 0.0, -cell, _HALF_WORLD - row * side * cell)
    picture = set(sample.dtypes) == {"uint8"}
    bands = RGBA if picture else tuple(Band(n, "Undefined") for n in range(1, len(sample.dtypes) + 1))
    # Where rows count from below, GDAL turns a row within the window's own rows.
    bottom = "{-y}" in template
    first_row = row_stop - tiles if bottom else row
    layout = Layout(
        crs="EPSG:3857",
        transform=transform,
        width=(col_stop - col) * side,
        height=(row_stop - row) * side,
        block=(side, side),
        dtype=sample.dtypes[0],
        bands=bands,
        source_bands=len(bands),
        window=element("TileLevel", zoom)
        + element("TileX", col)
        + element("TileY", first_row)
        + element("YOrigin", "bottom" if bottom else "top"),
        # A hole in a tile set is no data.
        options=element("ZeroBlockHttpCodes", "204,404") + element("OverviewCount", _overviews(zoom, window)),
    )
    url = re.sub(r"\{-?([xyz])\}", r"${\1}", template)
    service = f'<Service name="TMS">{element("ServerUrl", url)}</Service>'
    return document(service, layout), f"zoom {zoom} {window} {side} px {sample.dtypes}"


def _check_template(template: str) -> None:
    named = re.findall(r"\{([^{}]*)\}", template)
    unknown = set(named) - _PLACEHOLDERS
    if unknown or sorted(name.lstrip("-") for name in named) != ["x", "y", "z"]:
        odd = f"holds {{{sorted(unknown)[0]}}}" if unknown else "does not hold {z}, {x} and {y} once each"
        raise BadInputError(
            f"The tile template {odd}.",
            "Write it as https://host/path/{z}/{x}/{y}.png ({-y} where rows count from below), with one "
            "sub-domain in place of {s}.",
        )
    if "$" in template:
        raise BadInputError("The tile template holds a '$'.", "Write it as %24.")


def _zoom(address: Address) -> int:
    text = address.options.get("zoom")
    if text is None or not text.isdecimal() or int(text) > 30:
        raise BadInputError(
            "The zoom level of the tiles is not given." if text is None else f"The zoom level is {text!r}.",
            "Append #zoom=18 (0 to 30; a pixel measures 156543 m / 2^zoom at the equator).",
        )
    return int(text)


def _check_size(zoom: int, window: tuple[int, int, int, int], side: int) -> None:
    col, row, col_stop, row_stop = window
    if max(col_stop - col, row_stop - row) * side > _MAX_SIDE_PX:
        raise BadInputError(
            f"Tiles at zoom {zoom} have too many pixels there.",
            "Give a lower zoom, or bounds=west,south,east,north in degrees behind '#'.",
        )


def _tile_window(address: Address, zoom: int) -> tuple[int, int, int, int]:
    """(col, row, col_stop, row_stop), tiles."""
    tiles = 2**zoom
    if "bounds" not in address.options:
        return (0, 0, tiles, tiles)
    west, south, east, north = four_numbers(address.options["bounds"], "bounds behind '#'")
    if west < -180 or east > 180 or south < -90 or north > 90:
        raise BadInputError(
            f"bounds={address.options['bounds']} leaves the world.", "Give west,south,east,north in degrees."
        )
    left, top = _tile_position((west, north), tiles)
    right, bottom = _tile_position((east, south), tiles)
    col, row = math.floor(left + 1e-9), math.floor(top + 1e-9)
    col_stop, row_stop = math.ceil(right - 1e-9), math.ceil(bottom - 1e-9)
    # Whole tiles, at least one.
    return (min(col, tiles - 1), min(row, tiles - 1), max(col_stop, col + 1), max(row_stop, row + 1))


def _tile_position(point: tuple[float, float], tiles: int) -> tuple[float, float]:
    """(col, row), fractional, of a longitude and latitude."""
    longitude, latitude = point
    radians = math.radians(max(-_MAX_LATITUDE, min(_MAX_LATITUDE, latitude)))
    row = (1 - math.asinh(math.tan(radians)) / math.pi) / 2 * tiles
    return ((longitude + 180) / 360 * tiles, min(max(row, 0.0), float(tiles)))


def _sample(template: str, zoom: int, window: tuple[int, int, int, int]) -> Sample:
    """A tile in the middle, or above it where there is none: servers leave out what is empty."""
    col, row = (window[0] + window[2]) // 2, (window[1] + window[3]) // 2
    for up in sorted({*range(0, zoom, 4), zoom}):
        level, x, y = zoom - up, col >> up, row >> up
        url = template.replace("{z}", str(level)).replace("{x}", str(x)).replace("{y}", str(y))
        found = fetch_sample(url.replace("{-y}", str(2**level - 1 - y)))
        if found is not None:
            return found
    raise NotFoundError(
        f"{template} gave no tile at zoom {zoom}, column {col}, row {row}, nor at the levels above.",
        "Check the template, the zoom level and the bounds.",
    )


def _side(sample: Sample) -> int:
    known = len(set(sample.dtypes)) == 1 and is_known_dtype(sample.dtypes[0])
    if sample.width != sample.height or sample.width not in (256, 512, 1024) or not known:
        raise RasterError(
            f"The server's tiles are {sample.width} x {sample.height} px of type {sample.dtypes}.",
            "Name a tile service with square tiles of 256, 512 or 1024 px.",
        )
    return sample.width


def _overviews(zoom: int, window: tuple[int, int, int, int]) -> int:
    """Number of coarser levels on which the window is whole tiles, too."""
    count = 0
    while count < zoom and all(edge % 2 ** (count + 1) == 0 for edge in window):
        count += 1
    return count
