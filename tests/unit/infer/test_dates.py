"""When imagery was taken: by tags, by names, by documents."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import rasterio

from tasks.errors import BadInputError
from tasks.imagery import inspect_raster
from tasks.imagery.items import listed_rasters
from tasks.infer.dates import date_of_name, dated, iso_time
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.parameters import validated
from tasks.settings import settings
from tasks.store import ObjectStore


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write_file(name: str, **tags: str) -> str:
        path = tmp_path / name
        profile = {"driver": "GTiff", "width": 4, "height": 4, "count": 1, "dtype": "uint8"}
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write(np.ones((1, 4, 4), np.uint8))
            dataset.update_tags(**tags)
        return str(path)

    return write_file


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_files_say_it_by_tags_and_documents_go_before_them(write: Any) -> None:
    uris = [
        write("camera.tif", TIFFTAG_DATETIME="2024:07:01 10:20:30"),
        write("acquired.tif", ACQUISITIONDATE="2023-05-06", TIFFTAG_DATETIME="2024:07:01 10:20:30"),
        write("silent.tif"),
        write("item.tif", TIFFTAG_DATETIME="2024:07:01 10:20:30"),
    ]
    infos = [inspect_raster(uri) for uri in uris]
    infos[3] = infos[3].model_copy(update={"acquired": "2020-01-02T00:00:00"})
    found = [info.acquired for info in dated(infos, None)]
    assert found == ["2024-07-01T10:20:30", "2023-05-06T00:00:00", None, "2020-01-02T00:00:00"]
    # A pattern goes before all of it.
    named = [info.model_copy(update={"uri": f"s3://b/x_{2001 + n}0304.tif"}) for n, info in enumerate(infos)]
    assert [str(info.acquired)[:4] for info in dated(named, "%Y%m%d")] == ["2001", "2002", "2003", "2004"]


def test_tables_of_footprints_say_it_by_their_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
    settings.cache_clear()
    pandas.DataFrame(
        {"Location": [f"{tmp_path}/a.tif", f"{tmp_path}/b.tif"], "AcquisitionDate": [date(2019, 7, 1), None]}
    ).to_parquet(tmp_path / "index.parquet")
    listed = list(listed_rasters(str(tmp_path / "index.parquet"), ObjectStore()))
    settings.cache_clear()
    assert [raster.acquired for raster in listed] == ["2019-07-01T00:00:00", None]


@pytest.mark.parametrize(
    ("uri", "pattern", "expected"),
    [
        # The first place counts: acquired, then processed.
        ("s3://b/LC08_L1TP_016039_20140520_20170307_01_T1.tif", "%Y%m%d", "2014-05-20T00:00:00"),
        ("s3://b/S2A_MSIL1C_20170105T013442_N0204.jp2", "%Y%m%dT%H%M%S", "2017-01-05T01:34:42"),
        # No date that exists, and a part of a longer number: neither counts.
        ("https://h/tile_20249999_20240701.tif?sig=20200101", "%Y%m%d", "2024-07-01T00:00:00"),
        ("/data/1202407011_2024-183.tif", "%Y-%j", "2024-07-01T00:00:00"),
        ("/data/2024/07/01/B04.tif", "%Y/%m/%d/", "2024-07-01T00:00:00"),
        ("/data/ort_(2019)+1.tif", "(%Y)+", "2019-01-01T00:00:00"),
        ("s3://b/12345678_20240229.tif", "%Y%m%d", "2024-02-29T00:00:00"),
    ],
)
def test_a_name_says_it_by_a_stated_rule(uri: str, pattern: str, expected: str) -> None:
    assert date_of_name(uri, pattern) == expected


@pytest.mark.parametrize(
    "uri",
    ["s3://b/2024/07/01/x.tif", "s3://b/x_20240230.tif", "s3://b/x_120240701.tif", "s3://b/09990101.tif"],
)
def test_a_name_without_a_date_is_an_error(uri: str) -> None:
    with pytest.raises(BadInputError, match=r"no date like '%Y%m%d'.*Mend the pattern"):
        date_of_name(uri, "%Y%m%d")


def test_times_with_a_zone_come_to_utc() -> None:
    assert iso_time("2024-07-01T23:30:00-02:00") == "2024-07-02T01:30:00"
    assert iso_time("20240701") == "2024-07-01T00:00:00"
    assert iso_time("2024/07/01") == "2024-07-01T00:00:00"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"date_in_name": "%y%m%d"}, "no pattern of a date"),
        ({"date_in_name": "%m%d"}, "no pattern of a date"),
        ({"date_in_name": "%Y%Y"}, "no pattern of a date"),
        ({"date_in_name": "%Y"}, "says too little for BY_DATE"),
        ({"processing_mode": "PROCESS_ITEMS_SEPARATELY"}, "PROCESS_AS_MOSAICKED_IMAGE"),
    ],
)
def test_parameters_that_fit_no_series_are_refused(change: dict[str, str], message: str) -> None:
    values = {"input_raster": ["a"], "model": "m", "output_classified_raster": "o", "time_series": "BY_DATE"}
    with pytest.raises(BadInputError, match=message):
        validated(ClassifyPixelsParameters, {**values, **change})
    assert validated(ClassifyPixelsParameters, {**values, "date_in_name": "%Y-%j"}).change_rasters is False
