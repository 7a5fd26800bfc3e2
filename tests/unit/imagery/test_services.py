"""What counts as a service, by its address alone; reading is tested against a server in tests/integration."""

from __future__ import annotations

import pytest

from tasks.errors import BadInputError
from tasks.imagery.identity import unsigned, without_credentials
from tasks.imagery.services import kind_of_service, may_pass, reason_of


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("https://host/a.tif", None),
        ("https://host/a.tif?service=download", None),
        ("s3://bucket/{z}/{x}/{y}.tif", None),
        ("/data/{z}.tif", None),
        ("/data/a.tif", None),
        ("/data/Service.XML", "gdal_wms"),
        ("s3://bucket/service.wms", "gdal_wms"),
        ("https://host/{z}/{x}/{y}.png#zoom=3", "xyz"),
        ("https://host/tiles?z={z}&x={x}&y={-y}", "xyz"),
        ("https://{s}.host/{z}/{x}/{y}.png", "xyz"),
        ("https://host/arcgis/rest/services/A/ImageServer", "imageserver"),
        ("https://host/A/ImageServer/exportImage?mosaicRule={%22x%22:1}", "imageserver"),
        ("https://host/imageserver/a.tif", None),
        ("https://host/ows?SERVICE=wms&layers=a", "wms"),
        ("https://host/ows?Request=GetMap&layers=a", "wms"),
    ],
)
def test_the_address_tells_the_kind(uri: str, kind: str | None) -> None:
    assert kind_of_service(uri) == kind


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("https://host/ows?service=WMTS&request=GetCapabilities", "WMTS.*not read.*template"),
        ("https://host/ows?service=WCS&request=GetCapabilities", "WCS.*not read"),
        ("https://host/rest/services/a/MapServer", "map service.*ImageServer"),
    ],
)
def test_other_services_are_refused_with_the_way_out(uri: str, told: str) -> None:
    with pytest.raises(BadInputError, match=told):
        kind_of_service(uri)


@pytest.mark.parametrize(
    "secret", ["token=a", "ACCESS_TOKEN=a", "apikey=a", "key=a", "X-Amz-Signature=a", "password=a"]
)
def test_addresses_are_told_without_what_gives_access(secret: str) -> None:
    assert unsigned(f"https://host/{{z}}/{{x}}/{{y}}?v=1&{secret}") == "https://host/{z}/{x}/{y}?v=1"
    assert unsigned(f"https://me:pw@host/t?y={{y}}&{secret}#zoom=3") == "https://host/t?y={y}#zoom=3"
    text = (
        f"GDALWMS: <ServerUrl>https://host/a?{secret}&amp;b=1</ServerUrl> and https://host/c?{secret} failed"
    )
    told = without_credentials(text)
    assert told == "GDALWMS: <ServerUrl>https://host/a?b=1</ServerUrl> and https://host/c failed"


def test_other_addresses_stay_as_they_are() -> None:
    for uri in ("s3://bucket/a?token=1", "/data/a@b?key=1", "https://host/a.tif", "https://host/a?b=1&c="):
        assert unsigned(uri) == uri


@pytest.mark.parametrize(
    ("status", "passing"), [(0, True), (503, True), (429, True), (403, False), (404, False)]
)
def test_only_what_may_pass_is_tried_again(status: int, passing: bool) -> None:
    text = f"Unable to download block 0, 0.\n  URL: \n  HTTP status code: {status}, error: (null)."
    reason = reason_of(OSError(text + "\nAdd the HTTP status code to <ZeroBlockHttpCodes>"))
    assert "Add the" not in reason
    assert "\n" not in reason
    assert may_pass(reason) == passing
    assert not may_pass("TIFFReadEncodedTile failed")
