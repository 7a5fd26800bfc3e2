"""Where the imagery held no data a chip says so, in a mask that any GDAL reads and that training heeds."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning

from tasks.labels.schema import ClassSchema
from tasks.training_data import images, layout
from tasks.training_data.sample import Context
from tasks.training_data.tiff import encode_mask

SHAPE = (33, 47)
PLACE = (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0)


def known_part() -> np.ndarray:
    known = np.random.default_rng(3).random(SHAPE) < 0.7
    known[:9, :5] = False
    return known


@pytest.mark.parametrize("chip_format", layout.IMAGE_EXTENSIONS)
@pytest.mark.parametrize("bands", [1, 3])
def test_a_chip_says_where_it_holds_no_data(tmp_path: Path, chip_format: str, bands: int) -> None:
    known = known_part()
    values = np.random.default_rng(1).integers(0, 3, (bands, *SHAPE), dtype=np.uint8)  # many zeros are data
    values[:, ~known] = 0
    context = Context(chip_format, None, ClassSchema(()))
    files, path = images.encode_picture(values, "000000001", "images", PLACE, context, known)
    assert [file.path for file in files][-1] == f"{path}.msk"
    for file in files:
        (tmp_path / file.path).parent.mkdir(exist_ok=True)
        (tmp_path / file.path).write_bytes(file.data)
    pixels, there = images.decode_known(tmp_path / path)
    assert there is not None
    np.testing.assert_array_equal(there, np.broadcast_to(known, values.shape))
    if chip_format != "JPEG":
        np.testing.assert_array_equal(pixels, values)
    assert not pixels[:, ~known].any()
    with rasterio.open(tmp_path / path) as dataset:
        assert dataset.nodata is None
        np.testing.assert_array_equal(dataset.dataset_mask(), np.where(known, 255, 0))


def test_a_whole_chip_has_no_mask() -> None:
    context = Context("TIFF", None, ClassSchema(()))
    values = np.zeros((3, *SHAPE), np.uint8)
    alone = images.encode_picture(values, "000000001", "images", PLACE, context)
    assert images.encode_picture(values, "000000001", "images", PLACE, context, np.ones(SHAPE, bool)) == alone
    # As readers of imagery give it where all is there: one value without memory of its own.
    whole = np.broadcast_to(np.True_, SHAPE)
    assert images.encode_picture(values, "000000001", "images", PLACE, context, whole) == alone


def test_the_mask_is_what_gdal_would_write(tmp_path: Path) -> None:
    known = known_part()
    path = tmp_path / "theirs.tif"
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", count=3, dtype="uint8", height=33, width=47) as dataset:
            dataset.write(np.ones((3, *SHAPE), np.uint8))
            dataset.write_mask(known)
        found = {}
        for name, data in (("theirs", Path(f"{path}.msk").read_bytes()), ("ours", encode_mask(known, 3))):
            with rasterio.open(io.BytesIO(data)) as mask:
                found[name] = (mask.read().tobytes(), mask.tags(), mask.mask_flag_enums, mask.shape)
    assert found["ours"] == found["theirs"]
    assert found["ours"][2] == ([MaskFlags.all_valid],)
