"""GeoTIFFs made in memory, several times faster than through a GDAL data set per chip.

GDAL writes an empty file of each kind (shape, type, coordinate reference system) once; of it come all tags,
among them the keys of the coordinate reference system. A chip then is that head with its own place and its
pixels in one strip: deflate after a horizontal (integers) or floating point predictor, as TIFF 6.0 section
14 and Adobe Photoshop TIFF Technical Note 3 define them.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from affine import Affine
from isal import isal_zlib
from rasterio.io import MemoryFile

# Of ISA-L's levels the one that is best at masks and pictures for its time.
_LEVEL = 2
# Bytes of its widest loads, twice.
_VECTOR = 128
_STRIP_OFFSET, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 278, 279
_PIXEL_SCALE, _TIE_POINT, _MATRIX = 33550, 33922, 34264
_LONG = 4
# Bytes of one value, by TIFF field type.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}

# What of a file's place its head has room for; or that it is a mask.
_Kind = Literal["unplaced", "north up", "turned", "mask"]
_UNPLACED: _Kind = "unplaced"
_NORTH_UP: _Kind = "north up"
_TURNED: _Kind = "turned"
_MASK: _Kind = "mask"
_PLACES: dict[_Kind, tuple[int, ...]] = {_NORTH_UP: (2, 0, 3, 0, -2, 3), _TURNED: (2, 1, 3, 1, 2, 3)}

_heads = threading.Lock()


@dataclass(frozen=True)
class _Head:
    """All of a file but its pixels, and where its own numbers go."""

    data: bytes
    strip_bytes_at: int
    places_at: dict[int, int]


def encode_tiff(
    values: npt.NDArray[Any],  # (bands, rows, cols)
    transform: Sequence[float],
    crs_wkt: str | None,
) -> bytes:
    """A GeoTIFF, pixel interleaved, deflated; the same bytes for the same arguments.

    Args:
        values: any type that GeoTIFF holds; three bands of 8 bits are red, green and blue.
        transform: (a, b, c, d, e, f), pixel to map.
        crs_wkt: None leaves the coordinate reference system out.
    """
    a, b, c, d, e, f = (float(number) for number in transform)
    # GDAL tells a north-up place in other tags than a turned one, and the identity in none.
    placed = (a, b, c, d, e, f) != (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    north_up = b == 0 and d == 0 and e < 0
    kind = (_NORTH_UP if north_up else _TURNED) if placed else _UNPLACED
    head = _head_of(values.shape, values.dtype.name, crs_wkt, kind)
    file = bytearray(_with_strip(head, values))
    for tag, at in head.places_at.items():
        if tag == _PIXEL_SCALE:
            struct.pack_into("<3d", file, at, a, -e, 0)
        elif tag == _TIE_POINT:
            struct.pack_into("<6d", file, at, 0, 0, 0, c, f, 0)
        else:
            struct.pack_into("<16d", file, at, a, b, 0, c, d, e, 0, f, 0, 0, 0, 0, 0, 0, 0, 1)
    return bytes(file)


def encode_mask(known: npt.NDArray[Any], bands: int) -> bytes:
    """A raster's mask as GDAL keeps it beside the raster's file (``.msk``): 255 where there is data, else 0.

    That its one band masks every band is said of each, by an item INTERNAL_MASK_FLAGS_n of the value 2
    (GMF_PER_DATASET). Source: GDAL, RFC 15.

    Args:
        known: where there is data  # (rows, cols), bool
        bands: of the raster.
    """
    values = np.where(known, np.uint8(255), np.uint8(0))[np.newaxis]
    return _with_strip(_head_of(values.shape, "uint8", None, _MASK, bands), values)


def deflated(data: npt.NDArray[Any]) -> bytes:
    """A zlib stream of an array's bytes; the same for the same bytes, whatever lies around them in memory."""
    flat = data.reshape(-1).view(np.uint8)
    # ISA-L loads whole vectors: what it meets behind the data is always the same.
    padded = np.empty(flat.size + _VECTOR, np.uint8)
    padded[: flat.size] = flat
    padded[flat.size :] = 0
    return isal_zlib.compress(padded[: flat.size], _LEVEL)


def _with_strip(head: _Head, values: npt.NDArray[Any]) -> bytes:
    strip = deflated(_predicted(values))
    start = bytearray(head.data)
    struct.pack_into("<I", start, head.strip_bytes_at, len(strip))
    return bytes(start + strip)


def _predicted(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The pixels as the strip holds them before deflate  # (rows, cols * bands)."""
    bands, rows, cols = values.shape
    if values.dtype.kind == "f":
        little = np.ascontiguousarray(values.transpose(1, 2, 0)).reshape(rows, cols * bands)
        size = values.dtype.itemsize
        # The bytes of a row by significance: all of the highest first.
        parts = little.astype(values.dtype.newbyteorder(">")).view(np.uint8).reshape(rows, cols * bands, size)
        row = np.ascontiguousarray(parts.transpose(0, 2, 1)).reshape(rows, cols * bands * size)
        row[:, bands:] = row[:, bands:] - row[:, :-bands]
        return row
    out = np.empty((rows, cols, bands), values.dtype.newbyteorder("<"))
    if values.dtype.kind in "iu":
        # Differences and the turn from planes to pixels in one go.
        for band in range(bands):
            np.subtract(values[band, :, 1:], values[band, :, :-1], out=out[:, 1:, band])
            out[:, 0, band] = values[band, :, 0]
    else:
        out[...] = values.transpose(1, 2, 0)
    return out.reshape(rows, cols * bands)


def _head_of(
    shape: tuple[int, int, int], dtype: str, crs_wkt: str | None, kind: _Kind, masked: int = 0
) -> _Head:
    """One head for all chips of a kind, whichever thread needs it first."""
    with _heads:
        return _head(shape, dtype, crs_wkt, kind, masked)


@lru_cache(maxsize=256)
def _head(shape: tuple[int, int, int], dtype: str, crs_wkt: str | None, kind: _Kind, masked: int) -> _Head:
    bands, rows, cols = shape
    type_of = np.dtype(dtype).kind
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": bands,
        "height": rows,
        "width": cols,
        "dtype": dtype,
        "crs": crs_wkt,
        "interleave": "pixel",
        "compress": "deflate",
        "predictor": {"f": 3, "i": 2, "u": 2}.get(type_of, 1),
        "bigtiff": "NO",
        "endianness": "LITTLE",
        "sparse_ok": True,
    }
    if kind in _PLACES:
        profile["transform"] = Affine(*_PLACES[kind])
    if masked:
        # In pixels; without any place rasterio would warn.
        profile["transform"] = Affine(1, 0, 0, 0, -1, rows)
    if bands == 3 and dtype == "uint8":
        profile["photometric"] = "RGB"
    elif bands > 1:
        # Without it GDAL would declare three of several bands to be red, green and blue.
        profile["photometric"] = "MINISBLACK"
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            if masked:
                dataset.update_tags(**{f"INTERNAL_MASK_FLAGS_{band}": "2" for band in range(1, masked + 1)})
        empty = bytes(memory.read())
    tags = _tags(empty)
    tags[_STRIP_OFFSET] = tags[_STRIP_BYTES] = (_LONG, 1, bytes(4))
    tags[_ROWS_PER_STRIP] = (_LONG, 1, struct.pack("<I", rows))
    return _laid_out(tags)


def _tags(file: bytes) -> dict[int, tuple[int, int, bytes]]:
    """Field type, count and bytes of every tag of a little-endian TIFF's first directory."""
    (start,) = struct.unpack_from("<I", file, 4)
    (entries,) = struct.unpack_from("<H", file, start)
    tags = {}
    for entry in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind, count = struct.unpack_from("<HHI", file, entry)
        size = _SIZES[kind] * count
        at = entry + 8 if size <= 4 else struct.unpack_from("<I", file, entry + 8)[0]
        tags[tag] = kind, count, file[at : at + size]
    return tags


def _laid_out(tags: dict[int, tuple[int, int, bytes]]) -> _Head:
    """Header, directory, then what does not fit into it; the strip comes behind."""
    end = 8 + 2 + 12 * len(tags) + 4
    directory, behind = bytearray(), bytearray()
    at: dict[int, int] = {}
    for number, (tag, (kind, count, data)) in enumerate(sorted(tags.items())):
        directory += struct.pack("<HHI", tag, kind, count)
        if len(data) <= 4:
            at[tag] = 8 + 2 + 12 * number + 8
            directory += data.ljust(4, b"\0")
        else:
            behind += bytes(-len(behind) % 8)
            at[tag] = end + len(behind)
            directory += struct.pack("<I", at[tag])
            behind += data
    behind += bytes(-(end + len(behind)) % 8)
    head = bytearray(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + directory + bytes(4) + behind)
    struct.pack_into("<I", head, at[_STRIP_OFFSET], len(head))
    places = {tag: at[tag] for tag in (_PIXEL_SCALE, _TIE_POINT, _MATRIX) if tag in at}
    return _Head(bytes(head), at[_STRIP_BYTES], places)
