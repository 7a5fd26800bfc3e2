"""Documents that list rasters: which asset is taken, what addresses may say, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from tasks.errors import BadInputError, ChiplineError
from tasks.imagery import expand_rasters, items
from tasks.imagery.collection import list_rasters
from tasks.imagery.items import is_item_document, split_asset
from tasks.settings import settings

COG = "image/tiff; application=geotiff; profile=cloud-optimized"


@pytest.fixture(autouse=True)
def _allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    roots = [str(tmp_path), "s3://scenes", "https://example.org"]
    monkeypatch.setenv("CHIPLINE_ROOT", "s3://ours")
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", json.dumps(roots))
    settings.cache_clear()
    yield
    settings.cache_clear()


def item(assets: dict[str, Any], name: str = "a", **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "id": name, "assets": assets, "properties": properties, "geometry": None}


def asset(href: str, *roles: str, media_type: str | None = COG) -> dict[str, Any]:
    return {"href": href, "roles": list(roles), **({"type": media_type} if media_type else {})}


def written(path: Path, document: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))
    return str(path)


@pytest.mark.parametrize(
    ("assets", "taken"),
    [
        ({"B04": asset("one.tif", "data"), "preview": asset("small.tif", "overview")}, "one.tif"),
        ({"B04": asset("b.tif", "data"), "visual": asset("v.tif", "data", "visual")}, "v.tif"),
        ({"B04": asset("b.tif", "data"), "data": asset("d.tif", "data")}, "d.tif"),
        ({"raster": asset("./sub/r.tif"), "meta": asset("m.xml", media_type="text/xml")}, "sub/r.tif"),
        ({"image": asset("r.jp2", media_type=None), "x": asset("x.pdf", media_type=None)}, "r.jp2"),
    ],
)
def test_the_asset_with_the_pixels_is_taken(tmp_path: Path, assets: Any, taken: str) -> None:
    document = written(tmp_path / "szenen" / "item.json", item(assets))
    assert expand_rasters([document]) == [str(tmp_path / "szenen" / taken)]


def test_an_asset_is_chosen_by_its_key_for_every_item(tmp_path: Path) -> None:
    collection = {
        "type": "FeatureCollection",
        "features": [
            item(
                {
                    "red": asset("s3://scenes/1/red.tif", "data"),
                    "nir": asset("s3://scenes/1/nir.tif", "data"),
                },
                "one",
                datetime="2026-05-01T12:00:00+02:00",
                Candidate=2,
            ),
            item({"nir": asset("../2/nir.tif", "data")}, "two", start_datetime="2026-06-01T00:00:00Z"),
        ],
    }
    document = written(tmp_path / "lists" / "items.geojson", collection)
    found = list_rasters([f"{document}#nir", "s3://scenes/other.tif", f"{document}#nir"])
    assert [raster.uri for raster in found] == [
        "s3://scenes/1/nir.tif",
        str(tmp_path / "2" / "nir.tif"),
        "s3://scenes/other.tif",
    ]
    assert [raster.acquired for raster in found] == ["2026-05-01T10:00:00", "2026-06-01T00:00:00", None]
    assert [raster.candidate for raster in found] == [2, None, None]
    with pytest.raises(BadInputError, match=r"Item two.*no asset 'red'.*nir"):
        expand_rasters([f"{document}#red"])
    with pytest.raises(BadInputError, match=r"Item one.*several rasters.*red, nir.*items\.geojson#red"):
        expand_rasters([document])


@pytest.mark.parametrize(
    ("href", "whole"),
    [
        ("../b/x.tif", "https://example.org/stac/b/x.tif"),
        ("/data/x.tif", "https://example.org/data/x.tif"),
        ("s3://scenes/x.tif", "s3://scenes/x.tif"),
    ],
)
def test_addresses_count_from_the_document(href: str, whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "https://example.org/stac/collections/s2/items/a"
    monkeypatch.setattr(
        items, "fetch_document", lambda _, **__: json.dumps(item({"data": asset(href)})).encode()
    )
    wanted = whole.replace("/stac/b/", "/stac/collections/s2/b/")
    assert expand_rasters([uri]) == [wanted]


@pytest.mark.parametrize(
    "href",
    [
        "/etc/passwd.tif",
        "../../../../../../../../etc/secret.tif",
        "s3://foreign/x.tif",
        "https://internal.example/x.tif",
        "http://169.254.169.254/latest/x.tif",
        "/vsicurl/https://example.org/x.tif",
        "/vsis3/scenes/x.tif",
        "file:///etc/secret.tif",
        "ftp://example.org/x.tif",
        "s3://scenes/../foreign/x.tif",
        "",
    ],
)
def test_hostile_addresses_are_refused(tmp_path: Path, href: str) -> None:
    document = written(tmp_path / "item.json", item({"data": asset(href, "data")}))
    with pytest.raises(BadInputError):
        expand_rasters([document])


def test_parquet_of_items_and_of_addresses(tmp_path: Path) -> None:
    when = datetime(2026, 5, 1, 10, tzinfo=UTC)
    assets = [
        {"visual": {"href": "s3://scenes/1.tif", "type": COG, "roles": ["data"]}, "nir": None},
        {
            "visual": {"href": "s3://scenes/2.tif", "type": COG, "roles": ["data"]},
            "nir": {"href": "s3://scenes/2n.tif", "type": COG, "roles": ["data"]},
        },
    ]
    table = pa.table({"id": ["a", "b"], "assets": assets, "datetime": [when, when], "Candidate": [0, 1]})
    pa.parquet.write_table(table, tmp_path / "items.parquet")
    found = list_rasters([str(tmp_path / "items.parquet")])
    assert [raster.uri for raster in found] == ["s3://scenes/1.tif", "s3://scenes/2.tif"]
    assert [raster.acquired for raster in found] == ["2026-05-01T10:00:00"] * 2
    assert [raster.candidate for raster in found] == [0, 1]
    with pytest.raises(BadInputError, match="no asset 'nir'"):
        expand_rasters([str(tmp_path / "items.parquet") + "#nir"])

    plain = pa.table({"Location": ["x/1.tif", "s3://scenes/2.tif"], "scene": ["3.tif", None]})
    pa.parquet.write_table(plain, tmp_path / "index.parquet")
    assert expand_rasters([str(tmp_path / "index.parquet")]) == [
        str(tmp_path / "x" / "1.tif"),
        "s3://scenes/2.tif",
    ]
    with pytest.raises(BadInputError, match="no address in row 2"):
        expand_rasters([str(tmp_path / "index.parquet") + "#scene"])
    with pytest.raises(BadInputError, match=r"no column place.*Location, scene"):
        expand_rasters([str(tmp_path / "index.parquet") + "#place"])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"type": "Catalog", "links": []}, "Catalog without items"),
        ({"type": "FeatureCollection", "features": []}, "No raster was found"),
        ({"type": "FeatureCollection", "features": [{"type": "Feature"}]}, "features without assets"),
        ({"type": "FeatureCollection", "features": [], "links": [{"rel": "next"}]}, "not understood"),
        ([1, 2], "document without items"),
        (item({}), "no raster among its assets: none"),
        (item({"data": {"href": 5}}), "no raster"),
        (item({"thumbnail": asset("t.png", "thumbnail", media_type="image/png")}), "no raster"),
    ],
)
def test_a_document_without_items_says_what_it_is(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(ChiplineError, match=message):
        expand_rasters([written(tmp_path / "x.json", document)])


SEARCH = "https://example.org/stac/search?limit=2"


def page(name: str, **following: Any) -> dict[str, Any]:
    """A page of two items and, with arguments, the link to the next one."""
    links = [{"rel": "self", "href": SEARCH}, *([{"rel": "next", **following}] if following else [])]
    features = [item({"data": asset(f"s3://scenes/{name}{n}.tif", "data")}) for n in (1, 2)]
    return {"type": "FeatureCollection", "features": features, "links": links}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``serve(answer)``: the STAC API is ``answer(address, body, headers)``; what was asked of it."""

    def serve(answer: Any) -> list[tuple[str, Any]]:
        asked: list[tuple[str, Any]] = []

        def fetch(url: str, *, body: Any = None, headers: Any = None) -> bytes:
            asked.append((url, body))
            return json.dumps(answer(url, body, headers)).encode()

        monkeypatch.setattr(items, "fetch_document", fetch)
        return asked

    return serve


def test_pages_are_followed_by_their_addresses(serve: Any) -> None:
    pages = {
        SEARCH: page("a", href="/stac/search?limit=2&token=b"),
        "https://example.org/stac/search?limit=2&token=b": page("b", href="?limit=2&token=c"),
        "https://example.org/stac/search?limit=2&token=c": {**page("c"), "features": []},
    }
    asked = serve(lambda url, _, __: pages[url])
    assert expand_rasters([SEARCH]) == [f"s3://scenes/{name}.tif" for name in ("a1", "a2", "b1", "b2")]
    assert asked == [(url, None) for url in pages]


def test_pages_that_are_posted(serve: Any) -> None:
    href, whole = "https://example.org/stac/search", {"collections": ["s2"], "limit": 2, "token": "b"}
    link = {"href": href, "method": "POST", "headers": {"X-Page": "2"}}

    def answer(_: str, body: Any, headers: Any) -> Any:
        if body is None:
            return page("a", **link, body=whole)
        assert headers == {"X-Page": "2"}
        return page("b", **link, body={"token": "c"}, merge=True) if body["token"] == "b" else page("c")

    asked = serve(answer)
    assert len(expand_rasters([SEARCH])) == 6
    assert asked == [(SEARCH, None), (href, whole), (href, {**whole, "token": "c"})]


def test_pages_on_disk(tmp_path: Path) -> None:
    written(tmp_path / "second.json", page("b"))
    first = written(tmp_path / "first.json", page("a", href="./second.json"))
    assert len(expand_rasters([first])) == 4


def test_pages_without_an_end_are_refused(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(lambda _, __, ___: page("a", href=SEARCH))
    with pytest.raises(BadInputError, match="lead back"):
        expand_rasters([SEARCH])
    monkeypatch.setattr(items, "MOST_PAGES", 5)
    asked = serve(lambda url, _, __: page("a", href=url + "0"))
    with pytest.raises(BadInputError, match="goes on after 5 pages"):
        expand_rasters([SEARCH])
    assert len(asked) == 5


@pytest.mark.parametrize(
    "href", ["https://internal.example/x", "http://169.254.169.254/x", "file:///etc/x.json", "s3://foreign/x"]
)
def test_pages_elsewhere_are_refused(serve: Any, href: str) -> None:
    asked = serve(lambda _, __, ___: page("a", href=href))
    with pytest.raises(BadInputError):
        expand_rasters([SEARCH])
    assert len(asked) == 1


@pytest.mark.parametrize(
    "link", [{"href": 5}, {"href": SEARCH, "method": "PUT"}, {"href": SEARCH, "method": "POST", "body": "x"}]
)
def test_links_that_are_not_understood_are_refused(serve: Any, link: Any) -> None:
    serve(lambda _, __, ___: page("a", **link))
    with pytest.raises(BadInputError, match="not understood"):
        expand_rasters([SEARCH])


def test_damaged_and_missing_documents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"type": "Feature", ')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no table")
    for name, message in (
        ("broken.json", "is no JSON"),
        ("broken.parquet", "cannot be read as Parquet"),
        ("missing.json", r"missing\.json"),
        ("missing.parquet", r"missing\.parquet"),
    ):
        with pytest.raises(ChiplineError, match=message):
            expand_rasters([str(tmp_path / name)])


def test_rasters_and_services_are_no_documents() -> None:
    for text in (
        "s3://scenes/a.tif",
        "s3://scenes/a#b.tif",
        "https://example.org/items/a.tif",
        "https://example.org/arcgis/rest/services/x/ImageServer?f=json",
    ):
        assert not is_item_document(text), text
        assert split_asset(text) == (text, None)
    assert split_asset("https://example.org/a.json?x=1#b") == ("https://example.org/a.json?x=1", "b")
