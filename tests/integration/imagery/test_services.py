"""Image services through GDAL from a server on this machine: pixels, validity, errors, secrets."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.crs import CRS

from tasks.errors import BadInputError, ChiplineError, NotFoundError, RasterError
from tasks.imagery import GridReader, Pixels, RasterInfo, Window, export_grid, inspect_raster
from tasks.imagery.overview import picture_grid, read_overview
from tasks.imagery.services import service_at
from tasks.settings import settings
from tests.integration.imagery.image_server import HALF_WORLD, TOKEN, Image, ImageServer, serving

UTM = 32612
CORNER = (500_000.0, 5_000_000.0)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageServer]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    with serving() as what:
        monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", json.dumps([what.address]))
        settings.cache_clear()
        yield what
    settings.cache_clear()


def random(bands: int, rows: int, cols: int, dtype: str) -> NDArray[Any]:
    return np.random.default_rng(7).integers(1, 255, (bands, rows, cols)).astype(dtype)


def read_all(infos: list[RasterInfo], window: Window | None = None) -> Pixels:
    grid = export_grid(infos)
    with GridReader(infos, grid) as reader:
        return reader.read(window or grid.window)


class TestImageServer:
    @pytest.mark.parametrize(
        ("bands", "dtype"), [(1, "float32"), (3, "uint8"), (4, "uint8"), (4, "uint16"), (6, "int16")]
    )
    def test_pixels_are_the_services(self, server: ImageServer, bands: int, dtype: str) -> None:
        values = random(bands, 150, 1100, dtype)
        names = [f"band {number}" for number in range(bands)]
        server.services["a"] = (Image(values, CORNER, 0.5, UTM), {"bandNames": names})
        info = inspect_raster(f"{server.address}/rest/services/a/ImageServer")
        assert (info.band_count, info.dtype, info.width, info.height) == (bands, dtype, 1100, 150)
        assert info.transform == (0.5, 0, 500_000, 0, -0.5, 5_000_000)
        assert info.band_names == tuple(names)
        assert "alpha" not in info.colorinterp
        pixels = read_all([info])
        np.testing.assert_array_equal(pixels.values, values)
        assert pixels.valid.all()

    @pytest.mark.parametrize("code", [{"wkid": 102100, "latestWkid": 3857}, {"wkid": 102003}, {"wkt": "own"}])
    def test_reference_systems_of_esri(self, server: ImageServer, code: dict[str, Any]) -> None:
        values = random(1, 20, 30, "uint8")
        if "wkt" in code:
            code = {"wkt": CRS.from_epsg(UTM).to_wkt(version="WKT1_ESRI")}
        extent = {"xmin": 1000.0, "ymin": 1000.0, "xmax": 1030.0, "ymax": 1020.0, "spatialReference": code}
        image = Image(values, (1000.0, 1020.0), 1.0, UTM)
        server.services["a"] = (image, {"extent": extent})
        info = inspect_raster(f"{server.address}/rest/services/a/ImageServer")
        expected = {3857: "EPSG:3857", None: "ESRI:102003"}[code.get("latestWkid")] if "wkid" in code else UTM
        assert CRS.from_wkt(info.crs_wkt) == CRS.from_user_input(expected)
        np.testing.assert_array_equal(read_all([info]).values, values)

    def test_the_services_size_limit_is_kept(self, server: ImageServer) -> None:
        values = random(1, 150, 300, "uint16")
        facts = {"maxImageHeight": 100, "maxImageWidth": 90}
        server.services["a"] = (Image(values, CORNER, 0.5, UTM), facts)
        info = inspect_raster(f"{server.address}/rest/services/a/ImageServer/")
        assert info.block_shape == (100, 90)
        np.testing.assert_array_equal(read_all([info]).values, values)

    @pytest.mark.parametrize("facts", [{"noDataValue": 5}, {"noDataValues": [5, 5]}])
    def test_nodata(self, server: ImageServer, facts: dict[str, Any]) -> None:
        values = random(2, 50, 60, "int16")
        values[:, 10:20, 30:] = 5
        server.services["a"] = (Image(values, CORNER, 0.5, UTM), facts)
        info = inspect_raster(f"{server.address}/rest/services/a/ImageServer")
        assert info.nodata == 5
        np.testing.assert_array_equal(read_all([info]).valid, (values != 5).any(axis=0))

    def test_what_the_address_asks_for_besides_reaches_the_service(self, server: ImageServer) -> None:
        server.services["a"] = (Image(random(1, 20, 20, "uint8"), CORNER, 0.5, UTM), {})
        rule = '{"mosaicMethod":"esriMosaicNone"}'
        info = inspect_raster(f"{server.address}/rest/services/a/ImageServer?mosaicRule={rule}&time=5")
        server.requests.clear()
        read_all([info])
        assert all(
            "mosaicRule=%7B%22mosaicMethod%22" in path and "time=5" in path for path in server.requests
        )

    def test_its_own_description_decides_the_identity(self, server: ImageServer) -> None:
        values = random(1, 20, 20, "uint8")
        server.services["a"] = (Image(values, CORNER, 0.5, UTM), {})
        address = f"{server.address}/rest/services/a/ImageServer"
        before = inspect_raster(address)
        assert inspect_raster(address + f"?token={TOKEN}").identity == before.identity
        server.services["a"] = (Image(values, CORNER, 0.5, UTM), {"editingInfo": {"lastEditDate": 1}})
        assert inspect_raster(address).identity != before.identity
        server.services["a"] = (Image(values[:, :10], CORNER, 0.5, UTM), {})
        after = inspect_raster(address)
        assert after.height == 10
        assert after.identity != before.identity

    def test_it_is_asked_for_its_description_once(self, server: ImageServer) -> None:
        server.services["a"] = (Image(random(1, 20, 20, "uint8"), CORNER, 0.5, UTM), {})
        info = inspect_raster(f"{server.address}/rest/services/a/ImageServer")
        read_all([info])
        read_all([info])
        assert sum("f=json" in path for path in server.requests) == 1

    def test_a_service_that_asks_for_a_token(self, server: ImageServer) -> None:
        values = random(1, 20, 20, "uint8")
        server.services["a"] = (Image(values, CORNER, 0.5, UTM), {"secured": True})
        address = f"{server.address}/rest/services/a/ImageServer"
        with pytest.raises(RasterError, match=r"Token Required.*\?token="):
            inspect_raster(address)
        info = inspect_raster(f"{address}?token={TOKEN}")
        np.testing.assert_array_equal(read_all([info]).values, values)
        assert TOKEN not in repr(service_at(info.uri))
        server.failures = [403]
        with pytest.raises(RasterError, match="could not be read") as caught:
            read_all([info])
        assert TOKEN not in str(caught.value)

    def test_what_is_no_image_service_says_so(self, server: ImageServer) -> None:
        with pytest.raises(NotFoundError, match="Service not found"):
            inspect_raster(f"{server.address}/rest/services/gone/ImageServer")
        with pytest.raises(NotFoundError, match="no service at"):
            inspect_raster(f"{server.address}/other/ImageServer")
        with pytest.raises(RasterError, match="an HTML page instead of JSON"):
            inspect_raster(f"{server.address}/html/ImageServer")
        with pytest.raises(RasterError, match="cannot be reached"):
            inspect_raster("http://127.0.0.1:1/ImageServer")
        with pytest.raises(BadInputError, match="map service"):
            inspect_raster(f"{server.address}/rest/services/a/MapServer")
        server.services["a"] = (Image(random(1, 20, 20, "uint8"), CORNER, 0.5, UTM), {"pixelSizeX": 0})
        with pytest.raises(RasterError, match="does not describe an image service"):
            inspect_raster(f"{server.address}/rest/services/a/ImageServer")
        server.failures = [500]
        with pytest.raises(RasterError, match="HTTP status 500"):
            inspect_raster(f"{server.address}/rest/services/a/ImageServer")

    def test_services_can_be_switched_off(self, server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CHIPLINE_GDAL_DRIVERS", '["GTiff"]')
        settings.cache_clear()
        with pytest.raises(BadInputError, match="switched off"):
            inspect_raster(f"{server.address}/rest/services/b/ImageServer")
        assert server.requests == []

    def test_a_passing_failure_is_tried_again(self, server: ImageServer) -> None:
        values = random(1, 20, 20, "uint8")
        server.services["a"] = (Image(values, CORNER, 0.5, UTM), {})
        info = inspect_raster(f"{server.address}/rest/services/a/ImageServer")
        server.failures = [503]
        np.testing.assert_array_equal(read_all([info]).values, values)


class TestWebMapService:
    @pytest.fixture
    def photo(self, server: ImageServer) -> NDArray[Any]:
        values = random(3, 200, 1300, "uint8")
        server.layers["photo"] = Image(values, CORNER, 0.5, UTM)
        server.layers["a b&c"] = Image(values, CORNER, 0.5, UTM)
        return values

    @pytest.mark.parametrize("version", ["1.1.1", "1.3.0"])
    @pytest.mark.parametrize("layer", ["photo", "a%20b%26c"])
    def test_a_getmap_address_is_a_raster(
        self, server: ImageServer, photo: NDArray[Any], version: str, layer: str
    ) -> None:
        reference = "crs" if version == "1.3.0" else "srs"
        box = "500000,4999900,500650,5000000"
        info = inspect_raster(
            f"{server.address}/wms?service=WMS&request=GetMap&version={version}&layers={layer}&styles=&"
            f"{reference}=EPSG:{UTM}&bbox={box}&width=1300&height=200&format=image/png"
        )
        assert (info.width, info.height, info.colorinterp[-1]) == (1300, 200, "alpha")
        pixels = read_all([info])
        np.testing.assert_array_equal(pixels.values[:3], photo)
        assert pixels.valid.all()

    def test_outside_of_the_map_nothing_is_valid(self, server: ImageServer, photo: NDArray[Any]) -> None:
        info = inspect_raster(
            f"{server.address}/wms?SERVICE=WMS&REQUEST=GetMap&LAYERS=photo&SRS=EPSG:{UTM}"
            "&BBOX=499990,4999980,500010,5000020#cell_size=0.5"
        )
        pixels = read_all([info])
        expected = np.zeros((80, 40), bool)
        expected[40:, 20:] = True
        np.testing.assert_array_equal(pixels.valid, expected)
        np.testing.assert_array_equal(pixels.values[:3, 40:, 20:], photo[:, :40, :20])

    @pytest.mark.parametrize("version", ["1.1.1", "1.3.0"])
    def test_axes_that_swap(self, server: ImageServer, version: str) -> None:
        values = random(3, 40, 60, "uint8")
        server.layers["world"] = Image(values, (-111.0, 45.0), 0.01, 4326)
        box = "44.6,-111,45,-110.4" if version == "1.3.0" else "-111,44.6,-110.4,45"
        reference = "crs" if version == "1.3.0" else "srs"
        info = inspect_raster(
            f"{server.address}/wms?request=GetMap&version={version}&layers=world&{reference}=EPSG:4326"
            f"&bbox={box}&width=60&height=40&transparent=false"
        )
        assert (info.band_count, info.width, info.height) == (3, 60, 40)
        assert info.bounds == pytest.approx((-111, 44.6, -110.4, 45))
        np.testing.assert_array_equal(read_all([info]).values, values)

    def test_the_capabilities_give_extent_and_reference_system(
        self, server: ImageServer, photo: NDArray[Any]
    ) -> None:
        address = f"{server.address}/wms?service=WMS&request=GetCapabilities"
        with pytest.raises(BadInputError, match=r"names no layer.*photo"):
            inspect_raster(address + "#cell_size=0.5")
        with pytest.raises(BadInputError, match=r"has no layer 'x'.*photo"):
            inspect_raster(address + "&layers=x#cell_size=0.5")
        with pytest.raises(BadInputError, match=r"resolution.*#cell_size="):
            inspect_raster(address + "&layers=photo")
        info = inspect_raster(address + "&layers=photo#cell_size=0.5")
        assert info.bounds == server.layers["photo"].bounds
        np.testing.assert_array_equal(read_all([info]).values[:3], photo)

    def test_tiff_keeps_the_type(self, server: ImageServer) -> None:
        values = random(1, 40, 60, "float32") / 3
        server.layers["heights"] = Image(values, CORNER, 2.0, UTM)
        info = inspect_raster(
            f"{server.address}/wms?request=GetMap&layers=heights&srs=EPSG:{UTM}&format=image/tiff"
            "&bbox=500000,4999920,500120,5000000&width=60&height=40"
        )
        assert (info.dtype, info.band_count) == ("float32", 1)
        np.testing.assert_array_equal(read_all([info]).values, values)

    def test_a_services_exception_is_told(self, server: ImageServer) -> None:
        with pytest.raises(RasterError, match="XML instead of an image: no layer x"):
            inspect_raster(
                f"{server.address}/wms?request=GetMap&layers=x&srs=EPSG:{UTM}&bbox=0,0,1,1&width=4&height=4"
            )
        for crs in ("EPSG:0", "/etc/passwd", "x"):
            with pytest.raises(BadInputError, match="is not known"):
                inspect_raster(
                    f"{server.address}/wms?request=GetMap&layers=x&srs={crs}&bbox=0,0,1,1&width=4&height=4"
                )
        with pytest.raises(RasterError, match="does not answer GetCapabilities"):
            inspect_raster(f"{server.address}/html?service=WMS&request=GetCapabilities&layers=x")
        with pytest.raises(BadInputError, match="WMTS, which is not read"):
            inspect_raster(f"{server.address}/wmts?service=WMTS&request=GetCapabilities")


def tile_image(zoom: int, col: int, row: int, values: NDArray[Any], side: int = 256) -> Image:
    cell = 2 * HALF_WORLD / 2**zoom / side
    corner = (-HALF_WORLD + col * side * cell, HALF_WORLD - row * side * cell)
    return Image(values, corner, cell, 3857)


class TestTiles:
    BOUNDS = "11.5,48.0,11.52,48.01"  # at zoom 15: columns 17430 to 17432, rows 11389 to 11390

    @pytest.mark.parametrize("side", [256, 512])
    @pytest.mark.parametrize("path", ["tiles/{z}/{x}/{y}.png", "tms/{z}/{x}/{-y}"])
    def test_pixels_are_the_tiles(self, server: ImageServer, side: int, path: str) -> None:
        values = random(3, 2 * side, 3 * side, "uint8")
        server.tile_px, server.tiles = side, tile_image(15, 17430, 11389, values, side)
        info = inspect_raster(f"{server.address}/{path}?key={TOKEN}#zoom=15&bounds={self.BOUNDS}")
        assert (info.width, info.height, info.dtype) == (3 * side, 2 * side, "uint8")
        assert info.block_shape == (side, side)
        pixels = read_all([info])
        np.testing.assert_array_equal(pixels.values[:3], values)
        assert pixels.valid.all()
        assert TOKEN not in service_at(info.uri).address  # type: ignore[union-attr]

    def test_a_missing_tile_is_no_data(self, server: ImageServer) -> None:
        values = random(3, 512, 512, "uint8")
        server.tiles = tile_image(15, 17430, 11389, values)  # the third column is missing
        info = inspect_raster(f"{server.address}/tiles/{{z}}/{{x}}/{{y}}.png#zoom=15&bounds={self.BOUNDS}")
        pixels = read_all([info])
        assert pixels.valid[:, :512].all()
        assert not pixels.valid[:, 512:].any()

    def test_the_whole_world_is_only_asked_for_what_is_read(self, server: ImageServer) -> None:
        values = random(3, 256, 256, "uint8")
        server.tiles = tile_image(22, 1_000_000, 2_000_000, values)
        # The middle of the world is empty: the tile at zoom 0 answers.
        info = inspect_raster(f"{server.address}/tiles/{{z}}/{{x}}/{{y}}.png#zoom=22")
        assert info.width == info.height == 2**30
        assert len(server.requests) < 10
        window = Window(2_000_000 * 256, 1_000_000 * 256, 256, 256)
        pixels = read_all([info], window)
        np.testing.assert_array_equal(pixels.values[:3], values)
        xmin, ymin, xmax, ymax = server.tiles.bounds
        grid = export_grid([info], extent=(xmin + 1, ymin + 1, xmax, ymax))
        assert grid.shape[0] < 256

    def test_jpeg_tiles(self, server: ImageServer) -> None:
        values = np.full((3, 512, 768), 90, np.uint8)
        server.tile_format, server.tiles = "jpg", tile_image(15, 17430, 11389, values)
        info = inspect_raster(f"{server.address}/tiles/{{z}}/{{x}}/{{y}}.jpg#zoom=15&bounds={self.BOUNDS}")
        pixels = read_all([info])
        assert np.abs(pixels.values[:3].astype(int) - 90).max() <= 1
        assert pixels.valid.all()

    def test_what_cannot_be_is_refused(self, server: ImageServer) -> None:
        server.tiles = tile_image(15, 17430, 11389, random(3, 256, 256, "uint8"))
        for tail, told in (
            ("tiles/{z}/{x}/{y}.png", "zoom level of the tiles is not given.*#zoom=18"),
            ("tiles/{z}/{x}/{y}.png#zoom=x", "zoom level is 'x'"),
            ("tiles/{z}/{x}/{y}.png#zoom=3&level=1", "says level=1"),
            ("tiles/{z}/{x}/{y}.png#zoom=30", "too many pixels"),
            ("tiles/{z}/{x}.png#zoom=3", "does not hold"),
            ("{s}/{z}/{x}/{y}.png#zoom=3", "{s}.*sub-domain"),
            ("tiles/{z}/{x}/{y}.png#zoom=3&bounds=1,2,3", "four numbers"),
            ("tiles/{z}/{x}/{y}.png#zoom=3&bounds=5,2,3,4", "holds no area"),
            ("tiles/{z}/{x}/{y}.png#zoom=3&bounds=5,2,300,4", "leaves the world"),
            ("gone/{z}/{x}/{y}.png#zoom=3", "gave no tile"),
            ("html/{z}/{x}/{y}.png#zoom=3", "an HTML page instead of an image: Please sign in"),
        ):
            with pytest.raises(ChiplineError, match=told):
                inspect_raster(f"{server.address}/{tail}")


def gdal_wms(
    server_url: str, *, service: str = "AGS", extra: str = "", projection: str = "EPSG:32612"
) -> str:
    return f"""<GDAL_WMS><!-- a comment --><Service name="{service}"><ServerUrl>{server_url}</ServerUrl>
      <SRS>EPSG:32612</SRS><ImageFormat>tiff</ImageFormat></Service><DataWindow>
      <UpperLeftX>500000</UpperLeftX><UpperLeftY>5000000</UpperLeftY><LowerRightX>500150</LowerRightX>
      <LowerRightY>4999950</LowerRightY><SizeX>300</SizeX><SizeY>100</SizeY></DataWindow>
      <Projection>{projection}</Projection><BandsCount>3</BandsCount><Cache><Path>./cache</Path></Cache>{extra}
      </GDAL_WMS>"""


class TestGdalWmsFiles:
    def test_one_is_read_and_nothing_is_kept_on_disk(self, server: ImageServer, tmp_path: Path) -> None:
        values = random(3, 100, 300, "uint8")
        server.services["a"] = (Image(values, CORNER, 0.5, UTM), {})
        path = tmp_path / "service.xml"
        path.write_text(gdal_wms(f"{server.address}/rest/services/a/ImageServer/exportImage?x=1"))
        before = {found.name for found in tmp_path.iterdir()}
        info = inspect_raster(str(path))
        np.testing.assert_array_equal(read_all([info]).values, values)
        assert {found.name for found in tmp_path.iterdir()} == before
        path.write_text(path.read_text() + "<!-- changed -->")
        assert inspect_raster(str(path)).identity != info.identity

    def test_what_could_reach_further_is_refused(self, server: ImageServer, tmp_path: Path) -> None:
        path = tmp_path / "service.wms"
        mine = f"{server.address}/rest/services/a/ImageServer/exportImage?x=1"
        for text, told in (
            (gdal_wms("http://elsewhere.example/ImageServer"), "outside the allowed roots"),
            (gdal_wms("/etc/passwd"), "begins with http"),
            (gdal_wms(mine, service="MRF"), "names the service 'MRF'"),
            (gdal_wms(mine, extra="<UnsafeSSL>true</UnsafeSSL>"), "element UnsafeSSL"),
            (gdal_wms(mine, projection="/etc/passwd"), "names a file or an address in Projection"),
            (gdal_wms(mine, extra="<Referer>/vsicurl/x</Referer>"), "names a file"),
            (gdal_wms(mine, extra="<BlockSizeX>100000</BlockSizeX>"), "BlockSizeX"),
            ("<!DOCTYPE x [<!ENTITY a 'b'>]>" + gdal_wms(mine), "entities"),
            (gdal_wms(mine) + "<", "not valid XML"),
        ):
            path.write_text(text)
            with pytest.raises(BadInputError, match=told):
                inspect_raster(str(path))
        assert server.requests == []

    def test_another_name_does_not_hide_one(self, server: ImageServer, tmp_path: Path) -> None:
        path = tmp_path / "service.tif"
        path.write_text(gdal_wms(f"{server.address}/rest/services/a/ImageServer/exportImage?x=1"))
        with pytest.raises(RasterError, match="cannot be opened"):
            inspect_raster(str(path))
        assert server.requests == []


def test_a_service_fills_what_a_file_leaves_open(server: ImageServer, tmp_path: Path) -> None:
    import rasterio
    from affine import Affine

    values = random(3, 100, 120, "uint8")
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", count=3, height=100, width=60, dtype="uint8",
        crs="EPSG:32612", transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
    ) as dataset:  # fmt: skip
        dataset.write(values[:, :, :60])
    server.services["a"] = (Image(values, CORNER, 0.5, UTM), {})
    infos = [
        inspect_raster(name)
        for name in (str(tmp_path / "a.tif"), f"{server.address}/rest/services/a/ImageServer")
    ]
    np.testing.assert_array_equal(read_all(infos).values, values)


def test_a_picture_of_a_service_asks_for_little(server: ImageServer) -> None:
    values = np.repeat(np.repeat(random(1, 20, 30, "uint8"), 100, 1), 100, 2)
    server.services["a"] = (Image(values, CORNER, 0.5, UTM), {})
    info = inspect_raster(f"{server.address}/rest/services/a/ImageServer")
    server.requests.clear()
    grid = picture_grid([info], None, max_px=30)
    picture = read_overview([info], grid, (0,), resampling="nearest")
    np.testing.assert_array_equal(picture.values, values[:, 50::100, 50::100])
    assert len(server.requests) <= 2


@pytest.mark.parametrize("garbage", [b"", b"this is no image, whatever it says of itself"])
def test_no_secret_in_what_is_logged(server: ImageServer, garbage: bytes) -> None:
    server.layers["photo"] = Image(random(3, 20, 20, "uint8"), CORNER, 0.5, UTM)
    info = inspect_raster(
        f"{server.address}/wms?request=GetMap&layers=photo&srs=EPSG:{UTM}&access_token={TOKEN}"
        "&bbox=500000,4999990,500010,5000000&width=20&height=20"
    )
    del server.layers["photo"]
    server.garbage = garbage
    with pytest.raises(RasterError, match="ReadBlockFromFile" if garbage else "no layer photo") as caught:
        read_all([info])
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
