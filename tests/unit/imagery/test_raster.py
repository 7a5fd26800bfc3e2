import json
import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

from tasks.errors import BadInputError, NotFoundError, RasterError
from tasks.imagery import RasterInfo, inspect_raster
from tests.unit.imagery.conftest import Writer


def test_it_tells_what_rasterio_tells(write: Writer, noise: NDArray[np.uint8]) -> None:
    path = write("a.tif", noise, nodata=7)
    info = inspect_raster(path)
    with rasterio.open(path) as dataset:
        assert (info.width, info.height, info.band_count) == (dataset.width, dataset.height, dataset.count)
        assert info.transform == tuple(dataset.transform)[:6]
        assert info.bounds == tuple(dataset.bounds)
        assert info.crs_wkt == dataset.crs.to_wkt()
    assert (info.dtype, info.nodata, info.block_shape) == ("uint8", 7.0, (32, 32))
    assert info.band_names == ("Band_1", "Band_2", "Band_3")
    assert info.colorinterp == ("red", "green", "blue")


@pytest.mark.parametrize("nodata", [None, -9999.0, math.nan])
def test_it_survives_json(write: Writer, nodata: float | None) -> None:
    info = inspect_raster(write("a.tif", np.ones((1, 4, 4), np.float32), nodata=nodata))
    text = json.dumps(info.to_dict(), allow_nan=False)
    assert RasterInfo.from_dict(json.loads(text)) == info


def test_without_georeference_it_is_in_pixel_space(write: Writer) -> None:
    path = write("a.png", np.ones((1, 5, 6), np.uint8), crs=None, transform=Affine.identity(), driver="PNG")
    info = inspect_raster(path)
    assert info.crs_wkt is None
    assert info.bounds == (0, -5, 6, 0)


def test_names_with_odd_characters(write: Writer, noise: NDArray[np.uint8]) -> None:
    for name in ("Größe ☃ 木.tif", "a#b?c!d.tif", "with space [1].tif"):
        assert inspect_raster(write(name, noise)).width == 170


def test_what_is_no_raster_is_refused_with_a_remedy(tmp_path: Path) -> None:
    text = tmp_path / "a.tif"
    text.write_text("hello")
    with pytest.raises(RasterError, match=r"cannot be opened as a raster.*GTiff"):
        inspect_raster(str(text))
    with pytest.raises(NotFoundError, match=r"no raster at .*gone\.tif"):
        inspect_raster(str(tmp_path / "gone.tif"))
    with pytest.raises(NotFoundError):
        inspect_raster(str(tmp_path))


def test_only_allowed_drivers_open_a_file(write: Writer) -> None:
    path = write("a.bmp", np.ones((1, 5, 6), np.uint8), driver="BMP")
    with pytest.raises(RasterError, match="cannot be opened"):
        inspect_raster(path)


def test_gdal_syntax_is_no_path(write: Writer, noise: NDArray[np.uint8]) -> None:
    path = write("a.tif", noise)
    for text in (f"GTIFF_DIR:1:{path}", f"vrt://{path}", f"/vsisubfile/0_9,{path}", "<VRTDataset/>"):
        with pytest.raises((NotFoundError, RasterError, BadInputError)):
            inspect_raster(text)


def test_side_cars_count_in_the_identity(write: Writer, noise: NDArray[np.uint8]) -> None:
    path = write("a.tif", noise)
    before = inspect_raster(path).identity
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.zeros(noise.shape[1:], np.uint8))
    assert Path(path + ".msk").exists()
    assert inspect_raster(path).identity != before


def vrt(source: str, *, relative: int = 0, tag: str = "SimpleSource", extra: str = "") -> str:
    return f"""<VRTDataset rasterXSize="170" rasterYSize="150">
      <SRS>EPSG:32612</SRS><GeoTransform>500000,0.5,0,5000000,0,-0.5</GeoTransform>
      <VRTRasterBand dataType="Byte" band="1">{extra}<{tag}>
        <SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>
      </{tag}></VRTRasterBand></VRTDataset>"""


class TestVirtualRasters:
    def test_sources_beside_it_are_fine_and_count(
        self, tmp_path: Path, write: Writer, noise: NDArray[np.uint8]
    ) -> None:
        write("in/part.tif", noise)
        outer, inner = tmp_path / "outer.vrt", tmp_path / "in" / "inner.vrt"
        inner.write_text(vrt("part.tif", relative=1))
        outer.write_text(vrt("in/inner.vrt", relative=1))
        before = inspect_raster(str(outer))
        assert before.height == 150
        write("in/part.tif", noise[:, ::-1])
        assert inspect_raster(str(outer)).identity != before.identity

    def test_sources_elsewhere_are_refused(
        self, tmp_path: Path, write: Writer, noise: NDArray[np.uint8]
    ) -> None:
        secret = write("secret.tif", noise)
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / "link.tif").symlink_to(secret)
        for number, source in enumerate((secret, "../secret.tif", "link.tif")):
            path = folder / f"{number}.vrt"
            path.write_text(vrt(source, relative=int(not source.startswith("/"))))
            with pytest.raises(BadInputError, match="outside the allowed folders"):
                inspect_raster(str(path))

    def test_the_name_ending_does_not_hide_a_vrt(
        self, tmp_path: Path, write: Writer, noise: NDArray[np.uint8]
    ) -> None:
        path = tmp_path / "mine" / "a.tif"
        path.parent.mkdir()
        path.write_text(vrt(write("secret.tif", noise)))
        with pytest.raises(BadInputError, match="outside the allowed folders"):
            inspect_raster(str(path))

    @pytest.mark.parametrize(
        "source", ["/vsizip/x.zip/a.tif", "GTIFF_DIR:1:a.tif", "<VRTDataset/>".replace("<", "&lt;")]
    )
    def test_gdal_syntax_is_refused(self, tmp_path: Path, source: str) -> None:
        path = tmp_path / "a.vrt"
        path.write_text(vrt(source))
        with pytest.raises(BadInputError, match="neither a file nor an object"):
            inspect_raster(str(path))

    def test_code_and_entities_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.vrt"
        path.write_text(
            vrt("a.tif", relative=1, extra="<PixelFunctionLanguage>Python</PixelFunctionLanguage>")
        )
        with pytest.raises(BadInputError, match="Python pixel function"):
            inspect_raster(str(path))
        path.write_text("<!DOCTYPE x [<!ENTITY a 'b'>]>" + vrt("&a;"))
        with pytest.raises(BadInputError, match="entities"):
            inspect_raster(str(path))

    def test_a_vrt_that_reads_itself_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.vrt"
        path.write_text(vrt("b.vrt", relative=1))
        (tmp_path / "b.vrt").write_text(vrt("a.vrt", relative=1))
        with pytest.raises(BadInputError, match="reads itself"):
            inspect_raster(str(path))

    def test_a_missing_source_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "a.vrt"
        path.write_text(vrt("gone.tif", relative=1))
        with pytest.raises(NotFoundError, match=r"gone\.tif"):
            inspect_raster(str(path))
