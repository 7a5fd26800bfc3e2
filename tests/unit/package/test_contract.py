"""Package against imagery: what fits is silent, what does not is named with its cause."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pyproj import CRS

from tasks.errors import BadInputError
from tasks.imagery import BandSample, RasterInfo, RasterSample
from tasks.package import read_definition
from tasks.package.contract import Contract, check_contract

UTM = CRS.from_epsg(32612).to_wkt()


def raster(**changes: Any) -> RasterInfo:
    values: dict[str, Any] = {
        "uri": "a.tif",
        "width": 100,
        "height": 100,
        "band_count": 3,
        "dtype": "uint8",
        "nodata": None,
        "crs_wkt": UTM,
        "transform": (0.5, 0.0, 500000.0, 0.0, -0.5, 4000000.0),
        "block_shape": (256, 256),
        "band_names": ("Band_1", "Band_2", "Band_3"),
        "colorinterp": ("red", "green", "blue"),
        "identity": "1",
        **changes,
    }
    return RasterInfo(**values)


def check(raster_changes: dict[str, Any] | None = None, **given: Any) -> Contract:
    definition: dict[str, Any] = {
        "ExtractBands": [0, 1, 2],
        "IsImageNetNormalization": True,
        "MinCellSize": {"x": 0.5, "y": 0.5, "spatialReference": {"wkid": 32612, "latestWkid": 32612}},
        "Chipline": {"PixelType": "uint8"},
    }
    options = {key: given.pop(key) for key in ("sample", "cell_size", "out_sr") if key in given}
    definition.update(given)
    definition.setdefault("MaxCellSize", definition["MinCellSize"])
    return check_contract(
        read_definition(json.dumps(definition)), raster(**(raster_changes or {})), **options
    )


def values(*ranges: tuple[float, float], valid: float = 1.0, zero: float = 0.0) -> RasterSample:
    """A sample whose bands are spread evenly from low to high."""
    bands = tuple(BandSample(low, high, (low + high) / 2, (high - low) / 12**0.5) for low, high in ranges)
    return RasterSample(bands, valid, zero)


def verdicts(contract: Contract) -> list[tuple[str, str]]:
    return [(finding.subject, finding.verdict) for finding in contract.findings]


def test_what_fits_is_silent() -> None:
    contract = check(sample=values(*[(3, 250)] * 3))
    assert contract.bands == [0, 1, 2]
    assert contract.findings == []
    contract.raise_refusals("a.tif")


def test_too_few_bands_are_refused() -> None:
    contract = check(ExtractBands=[0, 1, 3])
    assert verdicts(contract) == [("bands", "refused")]
    with pytest.raises(BadInputError, match=r"takes the bands \[1, 2, 4\].*has 3.*Use imagery"):
        contract.raise_refusals("a.tif")


def test_bands_with_real_names_are_found_where_they_are() -> None:
    names = ("Blue", "green", "Red", "NIR")
    contract = check({"band_count": 4, "band_names": names}, Bands=["Red", "Green", "Blue"])
    assert contract.bands == [2, 1, 0]
    assert verdicts(contract) == [("bands", "fixed")]


def test_numbered_names_decide_nothing() -> None:
    assert check(Bands=["Red", "Green", "Blue"]).bands == [0, 1, 2]
    named = {"band_names": ("Red", "Green", "Blue")}
    assert check(named, Bands=["Band_3", "Band_2", "Band_1"]).findings == []


def test_bands_by_name() -> None:
    named = {"band_names": ("Blue", "Green", "Red")}
    assert check(named, ExtractBands=["red", "green"]).bands == [2, 1]
    assert verdicts(check(named, ExtractBands=["swir"])) == [("bands", "refused")]


def test_another_pixel_type_needs_to_show_the_same_values() -> None:
    other = {"dtype": "uint16"}
    assert verdicts(check(other)) == [("pixel type", "refused")]
    assert verdicts(check(other, sample=values(*[(0, 251)] * 3))) == [("pixel type", "reported")]
    assert verdicts(check(other, sample=values(*[(0, 4000)] * 3))) == [("value range", "refused")] * 3
    unit = check({"dtype": "float32"}, sample=values(*[(0.0, 1.0)] * 3))
    assert "trained on 0 to 255" in unit.findings[0].text


def test_the_range_of_training_statistics_is_used() -> None:
    stats = {
        "band_min_values": [0, 1000],
        "band_max_values": [100, 5000],
        "scaled_mean_values": [0, 0],
        "scaled_std_values": [1, 1],
    }
    given = {"ExtractBands": [1], "NormalizationStats": stats, "Chipline": {"PixelType": "uint16"}}
    changes = {"dtype": "uint16"}
    assert check(changes, sample=values((0, 9), (900, 6000), (0, 9)), **given).findings == []
    found = check(changes, sample=values((0, 9), (900, 60000), (0, 9)), **given)
    assert verdicts(found) == [("value range", "reported")]


def test_values_of_another_scale_are_refused_although_the_type_is_the_same() -> None:
    stats: dict[str, Any] = {
        "band_min_values": [0],
        "band_max_values": [10_000],
        "scaled_mean_values": [0.5],
        "scaled_std_values": [0.25],
    }
    given: dict[str, Any] = {
        "ExtractBands": [0],
        "NormalizationStats": stats,
        "Chipline": {"PixelType": "float32"},
    }
    fraction = check({"dtype": "float32"}, sample=values((0, 1)), **given)
    assert verdicts(fraction) == [("value range", "refused")]
    with pytest.raises(BadInputError, match=r"trained on 0 to 10000.*Rescale the imagery"):
        fraction.raise_refusals("a.tif")
    given["Chipline"] = {"PixelType": "uint16"}
    # Whole numbers that are small: a dark picture may be just that.
    dark = check({"dtype": "uint16"}, sample=values((0, 60)), **given)
    assert verdicts(dark) == [("value range", "reported")]
    given["NormalizationStats"] = {**stats, "band_max_values": [255]}
    assert verdicts(check({"dtype": "uint16"}, sample=values((0, 40_000)), **given)) == [
        ("value range", "refused")
    ]


class TestDrift:
    """The distance of two normal distributions, in the training's standard deviations."""

    def drift(self, mean: float, std: float, **given: Any) -> Contract:
        sample = RasterSample((BandSample(0, 200, mean, std),), 1, 0)
        return check(sample=sample, ExtractBands=[0], **given)

    def test_the_score_is_the_wasserstein_distance_in_standard_deviations(self) -> None:
        from scipy.stats import norm, wasserstein_distance

        stats = {
            "band_min_values": [0],
            "band_max_values": [255],
            "band_mean_values": [100],
            "band_std_values": [20],
            "scaled_mean_values": [0.4],
            "scaled_std_values": [0.1],
        }
        for mean, std, score in ((100, 20, 0.0), (130, 20, 1.5), (100, 50, 1.5), (112, 36, 1.0)):
            contract = self.drift(mean, std, NormalizationStats=stats)
            assert contract.drift == pytest.approx(score)
            assert contract.findings == []
        # With equal spreads it is the distance of the means, as for every Wasserstein distance.
        shares = (np.arange(2000) + 0.5) / 2000
        moved = wasserstein_distance(norm.ppf(shares, 130, 20), norm.ppf(shares, 100, 20))
        assert self.drift(130, 20, NormalizationStats=stats).drift == pytest.approx(moved / 20)
        other = self.drift(160, 20, NormalizationStats=stats)
        assert verdicts(other) == [("drift", "reported")]
        assert "drift score 3.0 (band 1 has 160 ± 20, the training 100 ± 20)" in other.findings[0].text

    def test_the_statistics_of_the_chips_serve_too(self) -> None:
        tiles = [{"BandName": "Red", "Min": 0, "Max": 255, "Mean": 90, "StdDev": 10}]
        assert self.drift(100, 10, AllTilesStats=tiles).drift == pytest.approx(1)
        unusable: Any
        for unusable in ([], [{}], [{"Mean": 1, "StdDev": 0}], "none"):
            assert self.drift(100, 10, AllTilesStats=unusable).drift is None

    def test_no_statistics_no_score(self) -> None:
        assert self.drift(100, 20).drift is None
        assert check().drift is None


@pytest.mark.parametrize(
    ("cell", "verdict", "wanted"),
    [
        (0.5, None, None),
        (0.74, None, None),
        (0.34, None, None),
        (0.9, "fixed", 0.5),
        (0.1, "fixed", 0.5),
        (2.4, "reported", None),  # coarser than resampling could mend
        (30, "refused", None),
        (0.005, "refused", None),
    ],
)
def test_cell_sizes_are_brought_to_the_training_s(
    cell: float, verdict: str | None, wanted: float | None
) -> None:
    contract = check({"transform": (cell, 0.0, 0.0, 0.0, -cell, 0.0)})
    assert verdicts(contract) == ([("cell size", verdict)] if verdict else [])
    assert contract.cell_size == wanted
    if verdict == "refused":
        with pytest.raises(BadInputError, match="set cell_size to the training's"):
            contract.raise_refusals("a.tif")


def test_super_resolution_takes_cells_as_coarse_as_its_factor() -> None:
    coarse = {"transform": (4.0, 0.0, 0.0, 0.0, -4.0, 0.0)}
    assert verdicts(check(coarse)) == [("cell size", "reported")]
    contract = check(coarse, ModelType="SuperResolution", downsample_factor=8)
    assert verdicts(contract) == [("cell size", "fixed")]
    assert contract.cell_size == 0.5


def test_the_nearest_end_of_a_range_is_taken() -> None:
    ends = {
        "MinCellSize": {"x": 0.5, "y": 0.5, "spatialReference": {"wkid": 32612}},
        "MaxCellSize": {"x": 2, "y": 2, "spatialReference": {"wkid": 32612}},
    }
    for cell, wanted in ((0.2, 0.5), (1.0, None), (2.9, None), (4.0, 2.0)):
        contract = check({"transform": (cell, 0.0, 0.0, 0.0, -cell, 0.0)}, **ends)
        assert contract.cell_size == wanted
    assert "0.5 m to 2 m: it is resampled to 2 m" in contract.findings[0].text


def test_a_given_cell_size_stays_and_is_judged() -> None:
    coarse = {"transform": (30.0, 0.0, 0.0, 0.0, -30.0, 0.0)}
    assert check(coarse, cell_size=0.6).findings == []
    far = check(coarse, cell_size=1.0)
    assert verdicts(far) == [("cell size", "reported")]
    assert far.cell_size is None
    assert verdicts(check(coarse, cell_size=30.0)) == [("cell size", "refused")]


def test_degrees_and_metres_are_compared_in_metres() -> None:
    degrees = 0.5 / 111_195
    geographic = {"crs_wkt": CRS.from_epsg(4326).to_wkt(), "transform": (degrees, 0, -110, 0, -degrees, 44)}
    assert check(geographic).findings == []
    fine = {**geographic, "transform": (degrees / 4, 0, -110, 0, -degrees / 4, 44)}
    assert check(fine).cell_size == pytest.approx(degrees)
    # The target grid's units count, not the imagery's.
    assert check(fine, out_sr=32612).cell_size == pytest.approx(0.5)
    assert check(geographic, out_sr=32612, cell_size=0.5).findings == []


def test_degrees_far_from_the_equator_are_reported() -> None:
    degrees = 0.5 / 111_195
    north = {"crs_wkt": CRS.from_epsg(4326).to_wkt(), "transform": (degrees, 0, 20, 0, -degrees, 60.01)}
    contract = check(north)
    assert verdicts(contract) == [("coordinate system", "reported")]
    assert "2.0 times as high as wide" in contract.findings[0].text
    assert "out_sr" in contract.findings[0].remedy
    assert check(north, out_sr=32634).findings == []
    trained = {"x": degrees, "y": degrees, "spatialReference": {"wkid": 4326}}
    assert check(north, MinCellSize=trained, MaxCellSize=trained).findings == []


def test_imagery_without_a_coordinate_system_is_reported() -> None:
    assert verdicts(check({"crs_wkt": None})) == [("coordinate system", "reported")]
    assert check({"crs_wkt": None}, ImageSpaceUsed="PIXEL_SPACE").findings == []


class TestNodata:
    def test_what_is_declared_and_fits_is_silent(self) -> None:
        holes = values(*[(1, 250)] * 3, valid=0.4)
        assert check({"nodata": 0.0}, sample=holes).findings == []
        assert check(sample=values(*[(1, 250)] * 3)).findings == []

    def test_a_value_that_cannot_occur_is_reported(self) -> None:
        for nodata in (-9999.0, 0.5, float("nan")):
            assert verdicts(check({"nodata": nodata})) == [("nodata", "reported")]
        assert check({"nodata": -9999.0, "dtype": "int16"}, Chipline={}).findings == []

    def test_nan_without_a_declaration_is_left_out_and_reported(self) -> None:
        contract = check({"dtype": "float32"}, Chipline={}, sample=values(*[(0, 250)] * 3, valid=0.75))
        assert verdicts(contract) == [("nodata", "fixed")]
        assert "25% of the pixels" in contract.findings[0].text

    def test_zeros_without_a_declaration_are_reported(self) -> None:
        zeros = values(*[(0, 250)] * 3, zero=0.3)
        assert verdicts(check(sample=zeros)) == [("nodata", "reported")]
        assert check({"nodata": 255.0}, sample=zeros).findings == []
        alpha = {
            "band_count": 4,
            "band_names": tuple("rgba"),
            "colorinterp": ("red", "green", "blue", "alpha"),
        }
        assert check(alpha, sample=values(*[(0, 250)] * 4, zero=0.3)).findings == []

    def test_no_data_at_all_is_reported(self) -> None:
        assert verdicts(check(sample=RasterSample((), 0, 0))) == [("nodata", "reported")]
