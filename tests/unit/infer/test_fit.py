"""What the contracts of a collection become: bands, cells, remarks, and rescaled pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rasterio

from tasks.errors import BadInputError
from tasks.imagery import BandSample, Pixels, RasterInfo, RasterSample, Window
from tasks.infer import fit as fitting
from tasks.infer.fit import LOOKED_AT, RescaledReader, check_fit, rescaling_for, sample_collection
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.package import ModelDefinition, read_definition


def info(cell: float = 0.5, **more: Any) -> RasterInfo:
    values: dict[str, Any] = {
        "uri": "s3://imagery/west.tif",
        "width": 100,
        "height": 100,
        "band_count": 1,
        "dtype": "uint8",
        "nodata": 0.0,
        "crs_wkt": rasterio.crs.CRS.from_epsg(32612).to_wkt(),
        "transform": (cell, 0.0, 500_000.0, 0.0, -cell, 4_900_000.0),
        "block_shape": (100, 100),
        "band_names": ("Band_1",),
        "colorinterp": ("gray",),
        "identity": "1",
        **more,
    }
    return RasterInfo(**values)


def definition() -> ModelDefinition:
    size = '{"x": 0.5, "y": 0.5, "spatialReference": {"wkid": 32612}}'
    return read_definition(
        f'{{"ExtractBands": [0], "MinCellSize": {size}, "MaxCellSize": {size}, '
        '"Chipline": {"PixelType": "uint8"}, "IsImageNetNormalization": true}'
    )


def classify(**more: Any) -> ClassifyPixelsParameters:
    values = {"input_raster": ["s3://imagery/"], "model": "s3://m.dlpk", "output_classified_raster": "trees"}
    return ClassifyPixelsParameters.model_validate({**values, **more})


def sample(low: float, high: float) -> RasterSample:
    return RasterSample((BandSample(low, high, (low + high) / 2, 1),), 1, 0)


def test_of_a_mosaic_the_first_raster_decides_the_cells() -> None:
    fine, coarse = info(0.1), info(1.5)
    fit = check_fit(classify(), definition(), [fine, coarse], ())
    assert fit.cell_sizes == [0.5, None]
    assert len(fit.remarks) == 1
    assert "resampled to 0.5 m" in fit.remarks[0]
    assert check_fit(classify(), definition(), [info(), coarse], ()).remarks == []
    apart = check_fit(
        classify(processing_mode="PROCESS_ITEMS_SEPARATELY"), definition(), [info(), fine, coarse], ()
    )
    assert apart.cell_sizes == [None, 0.5, 0.5]
    given = check_fit(classify(cell_size=0.6), definition(), [fine, coarse], ())
    assert (given.cell_sizes, given.remarks) == ([None, None], [])


def test_a_raster_on_another_scale_is_refused_by_name() -> None:
    other = info(dtype="uint16", uri="s3://imagery/east.tif")
    looks = [sample(0, 250), sample(0, 9000)]
    with pytest.raises(BadInputError, match=r"east\.tif.*trained on 0 to 255.*Rescale the imagery"):
        check_fit(classify(), definition(), [info(), other], looks)
    # What nobody looked at is judged by its type alone.
    with pytest.raises(BadInputError, match="is uint16 and the network was trained on uint8"):
        check_fit(classify(), definition(), [info(), other], [sample(0, 250), None])


def test_a_few_rasters_of_a_large_collection_are_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def look(raster: RasterInfo) -> RasterSample:
        looked.append(raster.uri)
        return sample(0, 1)

    monkeypatch.setattr(fitting, "sample_raster", look)
    found = sample_collection([info(uri=str(index)) for index in range(1000)])
    assert len(looked) == LOOKED_AT
    assert {"0", "999"} <= set(looked)
    assert [index for index, item in enumerate(found) if item is not None] == sorted(map(int, looked))
    assert None not in sample_collection([info(uri=str(index)) for index in range(3)])


class TestRescaling:
    def test_bytes_have_the_whole_range_of_bytes(self) -> None:
        made = rescaling_for((0, 1), [info()], [0], [sample(10, 20)])
        assert made is not None
        assert (made.low, made.high) == (0, 255)
        assert made.applied(np.array([0, 51, 255], np.uint8)).tolist() == pytest.approx([0, 0.2, 1])
        assert "0 to 255 are rescaled" in made.remark

    def test_other_types_have_the_range_that_was_seen_and_the_rest_is_clipped(self) -> None:
        rasters = [info(dtype="uint16"), info(dtype="uint16"), info(dtype="uint8")]
        made = rescaling_for((-1, 1), rasters, [0], [sample(100, 900), None, sample(50, 200)])
        assert made is not None
        assert (made.low, made.high) == (50, 900)
        values = made.applied(np.array([0, 50, 475, 900, 60_000], np.uint16))
        assert values.dtype == np.float32
        assert values.tolist() == pytest.approx([-1, -1, 0, 1, 1], abs=1e-6)

    def test_a_range_that_is_not_known_is_refused(self) -> None:
        for looks in ((), [None], [RasterSample((), 0, 0)], [sample(7, 7)]):
            with pytest.raises(BadInputError, match="Rescale the imagery to 8 bits"):
                rescaling_for((0, 1), [info(dtype="float32")], [0], looks)
        assert rescaling_for(None, [info()], [0], ()) is None

    def test_what_is_not_valid_stays_zero(self) -> None:
        class Reader:
            band_count = 1

            def read(self, window: Window) -> Pixels:
                values = np.full((1, *window.shape), 51, np.uint8)
                valid = np.ones(window.shape, np.bool_)
                values[:, 0], valid[0] = 0, False
                return Pixels(values, valid)

        made = rescaling_for((1, 2), [info()], [0], ())
        assert made is not None
        pixels = RescaledReader(Reader(), made).read(Window(0, 0, 2, 2))
        assert pixels.values.tolist() == [[[0, 0], [pytest.approx(1.2)] * 2]]
