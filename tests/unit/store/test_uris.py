from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks.errors import BadInputError
from tasks.settings import settings
from tasks.store import check_allowed, gdal_config, gdal_options, gdal_path, join
from tasks.store.uris import access_for, check_relative, split_s3

segment = st.text("abcXYZ019-_. é", min_size=1, max_size=8).filter(lambda s: s not in (".", ".."))

STORES = [
    {"prefix": "s3://data", "endpoint_url": "http://localhost:8333", "access_key": "k", "secret_key": "s"},
    {"prefix": "s3://data/open/", "anonymous": True, "region": "eu-west-1"},
    {"prefix": "s3://data/open/deep", "access_key": "deep", "secret_key": "x"},
]


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CHIPLINE_STORES", json.dumps(STORES))
    settings.cache_clear()
    yield
    settings.cache_clear()


@hypothesis_settings(deadline=None)
@given(st.lists(segment, min_size=1, max_size=4))
def test_join_and_split_are_inverse(parts: list[str]) -> None:
    assert split_s3(join("s3://bucket", *parts)) == ("bucket", "/".join(parts))
    assert join("s3://bucket/", *parts) == join("s3://bucket", "/".join(parts))
    assert Path(join("/", *parts)) == Path("/", *parts)


@pytest.mark.parametrize("part", ["..", "a/../b", "", "/", "a//b", "./a"])
def test_join_never_leaves_the_base(part: str) -> None:
    with pytest.raises(BadInputError):
        join("s3://bucket/a", part)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "C:/x", "", "a//b", "a\0"])
def test_a_listed_path_outside_its_folder_is_refused(path: str) -> None:
    with pytest.raises(BadInputError, match="does not lie inside"):
        check_relative(path, "s3://bucket/folder")


@pytest.mark.usefixtures("stores")
@pytest.mark.parametrize(
    ("uri", "prefix"),
    [
        ("s3://data/x.tif", "s3://data"),
        ("s3://data/open/x.tif", "s3://data/open/"),
        ("s3://data/open/deep/x.tif", "s3://data/open/deep"),
        ("s3://data/open/deeper/x.tif", "s3://data/open/"),
        ("s3://data/opener/x.tif", "s3://data"),
        ("s3://database/x.tif", None),
    ],
)
def test_the_longest_prefix_wins_at_a_segments_end(uri: str, prefix: str | None) -> None:
    access = access_for(uri)
    assert (access.prefix if access else None) == prefix


@pytest.mark.usefixtures("stores")
def test_gdal_gets_the_same_access() -> None:
    assert gdal_path("s3://data/a/b.tif") == "/vsis3/data/a/b.tif"
    config = gdal_config("s3://data/a/b.tif")
    assert config["AWS_S3_ENDPOINT"] == "localhost:8333"
    assert config["AWS_HTTPS"] == "NO"
    assert config["AWS_VIRTUAL_HOSTING"] == "FALSE"
    assert (config["AWS_ACCESS_KEY_ID"], config["AWS_SECRET_ACCESS_KEY"]) == ("k", "s")
    assert config["CPL_VSIL_USE_TEMP_FILE_FOR_RANDOM_WRITE"] == "YES"
    anonymous = gdal_config("s3://data/open/b.tif")
    assert anonymous["AWS_NO_SIGN_REQUEST"] == "YES"
    assert "AWS_ACCESS_KEY_ID" not in anonymous
    assert gdal_config("/a/b.tif") == gdal_options("/a/b.tif") == {}


@pytest.mark.usefixtures("stores")
@pytest.mark.filterwarnings("error")
def test_rasterio_takes_the_options_and_gdal_sees_them() -> None:
    import rasterio
    from rasterio._env import get_gdal_config

    with rasterio.Env(**gdal_options("s3://data/a.tif")) as environment:
        environment.credentialize()
        assert get_gdal_config("AWS_SECRET_ACCESS_KEY") == "s"
        assert get_gdal_config("AWS_S3_ENDPOINT") == "localhost:8333"
    with rasterio.Env(**gdal_options("s3://data/open/a.tif")) as environment:
        environment.credentialize()
        assert environment.session.unsigned
        assert get_gdal_config("AWS_REGION") == "eu-west-1"


class TestCheckAllowed:
    @pytest.fixture(autouse=True)
    def roots(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        (tmp_path / "open").mkdir()
        (tmp_path / "shut").mkdir()
        (tmp_path / "open" / "way-out").symlink_to(tmp_path / "shut")
        roots = ["s3://pictures", "s3://mixed/free/", str(tmp_path / "open")]
        monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", json.dumps(roots))
        monkeypatch.setenv("CHIPLINE_ROOT", "s3://own")
        settings.cache_clear()
        yield
        settings.cache_clear()

    def test_what_lies_under_a_root_passes(self, tmp_path: Path) -> None:
        for uri in ("s3://pictures/a.tif", "s3://mixed/free/a", "s3://own/x", f"{tmp_path}/open/a/b.tif"):
            check_allowed(uri)

    @pytest.mark.parametrize(
        "uri",
        [
            "s3://pictures-of-others/a.tif",
            "s3://mixed/a.tif",
            "s3://mixed/free/../a.tif",
            "s3://mixed/free//a.tif",
            "{tmp}/shut/a.tif",
            "{tmp}/open/../shut/a.tif",
            "{tmp}/open/way-out/a.tif",
            "relative.tif",
            "/vsis3/pictures/a.tif",
            "file:///etc/passwd",
            "ftp://pictures/a.tif",
            "https://example.org/a.tif",
            "<VRTDataset/>",
            "GTIFF_DIR:1:/etc/x.tif",
            "",
        ],
    )
    def test_all_else_is_refused_with_the_roots(self, uri: str, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="s3://pictures"):
            check_allowed(uri.format(tmp=tmp_path))
