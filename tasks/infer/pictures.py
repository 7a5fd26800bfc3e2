"""Rasters that a function makes as pictures: several bands, any values, and which pixels count.

Of classes one value can stand for nodata; of a picture's values none can, so that a shard carries a mask in
a band of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from tasks.errors import HostError
from tasks.infer.engine import Tile
from tasks.infer.operators import PixelFormat, PixelOperator
from tasks.infer.shards import Shard

PICTURE_TYPES = ("SuperResolution", "Pix2Pix", "CycleGAN", "Pix2PixHD")
"""Model types whose packages make pictures (docs/formats/emd-dlpk.md)."""

_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")


def picture_format(function_dtype: str, bands: int) -> PixelFormat:
    """The format of what a function makes; doubles become float32."""
    dtype = function_dtype if function_dtype in _TYPES else "float32"
    return PixelFormat(dtype, 0.0, bands=bands, masked=True)


@dataclass
class _PictureState:
    shard: Shard
    values: NDArray[Any]  # (bands, rows, cols) of the shard's window
    counts: NDArray[np.bool_]  # (rows, cols)


@dataclass(frozen=True)
class PictureOperator(PixelOperator):
    """As :class:`PixelOperator`, for several bands and a mask."""

    def begin(self, shard: Shard) -> Any:
        """A shard in which no pixel counts."""
        rows, cols = shard.target.shape
        values = np.zeros((self.format.bands, rows, cols), self.format.dtype)
        return _PictureState(shard, values, np.zeros((rows, cols), np.bool_))

    def accept(self, state: Any, tile: Tile, result: NDArray[Any]) -> None:
        """Put the inner part of one tile, (bands, rows, cols), in its place.

        Raises:
            HostError: another shape, or another type than the function stated.
        """
        shape = (self.format.bands, self.geometry.rows, self.geometry.cols)
        if result.shape != shape:
            raise HostError(
                f"The inference function returned pixels of shape {result.shape} for a block of {shape}.",
                "Mend the function: updatePixels returns the inner block of as many bands as "
                "updateRasterInfo states.",
            )
        if not np.can_cast(result.dtype, self.format.dtype, "same_kind"):
            raise HostError(
                f"The inference function returned {result.dtype}, and stated {self.format.dtype}.",
                "Mend the function: updatePixels returns the type that updateRasterInfo states.",
            )
        target = state.shard.target
        common = tile.inner.intersection(target)
        if common.is_empty:
            return
        part, place = common.slices_in(tile.inner), common.slices_in(target)
        values = result[:, *part]
        counts = tile.valid[part] & np.isfinite(values).all(axis=0)
        state.values[:, *place] = np.where(counts, values, 0)
        state.counts[place] = counts

    def finish(self, state: Any) -> bytes:
        """The shard as a compressed GeoTIFF whose last band says which pixels count (1)."""
        bands, rows, cols = state.values.shape
        profile = {
            "driver": "GTiff",
            "height": rows,
            "width": cols,
            "count": bands + 1,
            "dtype": self.format.dtype,
            "compress": "zstd",
            "tiled": True,
            "blockxsize": 256,
            "blockysize": 256,
            "transform": Affine(1, 0, 0, 0, -1, rows),  # pixel space, see PixelOperator
        }
        with MemoryFile() as memory:
            with memory.open(**profile) as dataset:
                dataset.write(np.concatenate([state.values, state.counts[None].astype(self.format.dtype)]))
            return bytes(memory.read())


def read_picture(data: bytes) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels (bands, rows, cols) of a shard's result, and which count (rows, cols)."""
    with MemoryFile(data) as memory, memory.open() as dataset:
        values: NDArray[Any] = dataset.read()
    return values[:-1], values[-1] != 0
