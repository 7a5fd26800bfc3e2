"""PNGs of our own making hold the pixels, in any reader."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from tasks.training_data.png import encode_png


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (17, 40), (64, 3)])
def test_gdal_reads_every_pixel(dtype: str, bands: int, rows: int, cols: int) -> None:
    values = np.random.default_rng(2).integers(0, np.iinfo(dtype).max, (bands, rows, cols), dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with MemoryFile(encode_png(values)) as memory, memory.open() as dataset:
            assert dataset.dtypes[0] == dtype
            np.testing.assert_array_equal(dataset.read(), values)


@pytest.mark.parametrize(("bands", "mode"), [(1, "L"), (3, "RGB")])
def test_pillow_reads_every_pixel(bands: int, mode: str) -> None:
    values = np.random.default_rng(2).integers(0, 255, (3, 20, 30), dtype=np.uint8)[:bands, ::-1]
    data = encode_png(values)
    with Image.open(io.BytesIO(data)) as picture:
        picture.verify()  # the chunks' check sums
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1), values)
