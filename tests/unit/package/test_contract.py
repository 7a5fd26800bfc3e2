"""Package against imagery: what fits is silent, what does not is named with its cause."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pyproj import CRS

from tasks.errors import BadInputError
from tasks.imagery import RasterInfo
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
    options = {key: given.pop(key) for key in ("values", "cell_size") if key in given}
    definition.update(given)
    definition.setdefault("MaxCellSize", definition["MinCellSize"])
    return check_contract(
        read_definition(json.dumps(definition)), raster(**(raster_changes or {})), **options
    )


def verdicts(contract: Contract) -> list[tuple[str, str]]:
    return [(finding.subject, finding.verdict) for finding in contract.findings]


def test_what_fits_is_silent() -> None:
    contract = check(values=[(3, 250)] * 3)
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
    assert verdicts(check(other, values=[(0, 251)] * 3)) == [("pixel type", "reported")]
    assert verdicts(check(other, values=[(0, 4000)] * 3)) == [("value range", "refused")] * 3
    unit = check({"dtype": "float32"}, values=[(0.0, 1.0)] * 3)
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
    assert check(changes, values=[(0, 9), (900, 6000), (0, 9)], **given).findings == []
    found = check(changes, values=[(0, 9), (900, 60000), (0, 9)], **given)
    assert verdicts(found) == [("value range", "reported")]


@pytest.mark.parametrize(
    ("cell", "verdict"), [(0.5, None), (0.9, None), (0.3, None), (1.2, "reported"), (0.1, "reported")]
)
def test_cell_sizes_are_compared_by_their_factor(cell: float, verdict: str | None) -> None:
    contract = check({"transform": (cell, 0.0, 0.0, 0.0, -cell, 0.0)})
    assert verdicts(contract) == ([("cell size", verdict)] if verdict else [])


def test_degrees_and_metres_are_compared_in_metres() -> None:
    degrees = 0.5 / 111_195
    geographic = {"crs_wkt": CRS.from_epsg(4326).to_wkt(), "transform": (degrees, 0, -110, 0, -degrees, 44)}
    assert check(geographic).findings == []
    assert verdicts(check({"transform": (30.0, 0.0, 0.0, 0.0, -30.0, 0.0)})) == [("cell size", "refused")]
    assert check({"transform": (30.0, 0.0, 0.0, 0.0, -30.0, 0.0)}, cell_size=0.6).findings == []


def test_imagery_without_a_coordinate_system_is_reported() -> None:
    assert verdicts(check({"crs_wkt": None})) == [("coordinate system", "reported")]
    assert check({"crs_wkt": None}, ImageSpaceUsed="PIXEL_SPACE").findings == []
