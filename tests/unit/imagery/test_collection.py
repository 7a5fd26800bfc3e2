from pathlib import Path

import numpy as np
import pytest
import rasterio.warp
from affine import Affine
from numpy.typing import NDArray

from tasks.errors import BadInputError, NotFoundError
from tasks.imagery import RasterInfo, expand_rasters, grid_of_collection, grid_of_raster, inspect_raster
from tasks.settings import settings
from tasks.store import Manifest, ObjectStore, Publication
from tests.unit.imagery.conftest import Writer

PIXELS: NDArray[np.uint8] = np.ones((1, 40, 60), np.uint8)


class TestExpandRasters:
    def test_folders_patterns_and_files_in_order_and_once(self, tmp_path: Path, write: Writer) -> None:
        b, a, nested = (write(name, PIXELS) for name in ("f/b.tif", "f/a.TIF", "f/sub/ä.png.tif"))
        (tmp_path / "f" / "notes.txt").write_text("no raster")
        (tmp_path / "f" / "a.TIF.aux.xml").write_text("no raster")
        folder = str(tmp_path / "f")
        assert expand_rasters([folder]) == sorted([a, b, nested])
        assert expand_rasters([folder + "/"]) == sorted([a, b, nested])
        assert expand_rasters([b, folder + "/*.[tT][iI]*"]) == [b, a]
        assert expand_rasters(["file://" + b]) == [b]
        assert expand_rasters(["s3://bucket/x.tif", "https://host/y.tif?z=*"]) == [
            "s3://bucket/x.tif",
            "https://host/y.tif?z=*",
        ]

    def test_a_published_folder_gives_its_outputs_not_their_previews(
        self, tmp_path: Path, write: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
        settings.cache_clear()
        folder = tmp_path / "published"
        publication = Publication(ObjectStore(), str(folder))
        records = [
            publication.put_file("scene.tif", Path(write("scene.tif", PIXELS))),
            publication.put_file("scene.preview.jpg", b"a picture"),
        ]
        part = publication.put_part("outputs", records)
        details = {"outputs": [{"path": "scene.tif"}]}
        publication.finish(Manifest(kind="outputs/x", name="x", run_key="k", parts=[part], details=details))
        assert expand_rasters([str(folder) + "/"]) == [str(folder / "scene.tif")]
        settings.cache_clear()

    def test_a_file_named_like_a_pattern(self, write: Writer) -> None:
        path = write("a[1].tif", PIXELS)
        assert expand_rasters([path]) == [path]

    def test_nothing_found_is_an_error(self, tmp_path: Path) -> None:
        for text in (str(tmp_path), str(tmp_path / "*.tif")):
            with pytest.raises(NotFoundError, match="No raster was found"):
                expand_rasters([text])
        with pytest.raises(BadInputError, match="No input raster"):
            expand_rasters([])


def info(write: Writer, name: str, **how: object) -> RasterInfo:
    return inspect_raster(write(name, PIXELS, **how))


class TestGridOfCollection:
    def test_joint_extent_on_the_first_rasters_cells(self, write: Writer) -> None:
        first = info(write, "1.tif", corner=(500_000.2, 5_000_000.3), cell=0.5)
        second = info(write, "2.tif", corner=(499_990.0, 5_000_040.0), cell=0.5)
        grid = grid_of_collection([first, second])
        assert grid.cell_size == (0.5, 0.5)
        assert (grid.transform[2] - 500_000.2) / 0.5 == pytest.approx(-21)  # 20.4 cells, outwards
        assert grid.bounds[0] <= second.bounds[0]
        assert grid.bounds[3] >= second.bounds[3]
        assert grid.bounds[1] == pytest.approx(first.bounds[1])
        assert grid.offset_of(first.transform, first.height, first.width) is not None

    def test_one_north_up_raster_is_its_own_grid(self, write: Writer) -> None:
        one = info(write, "1.tif", corner=(528000.0, 4979000.0), cell=0.1)
        assert grid_of_collection([one]).shape == grid_of_raster(one).shape
        assert grid_of_collection([one]).transform == pytest.approx(grid_of_raster(one).transform)

    def test_extent_is_snapped_outwards_and_clipped(self, write: Writer) -> None:
        one = info(write, "1.tif", cell=0.5)  # 30 x 20 m from (500000, 5000000)
        grid = grid_of_collection([one], extent=(500_001.2, 4_999_900.0, 500_003.4, 4_999_998.9))
        assert grid.bounds == pytest.approx((500_001.0, 4_999_980.0, 500_003.5, 4_999_999.0))
        with pytest.raises(BadInputError, match="does not touch"):
            grid_of_collection([one], extent=(0, 0, 1, 1))
        with pytest.raises(BadInputError, match="is empty"):
            grid_of_collection([one], extent=(5, 5, 1, 1))

    def test_cell_size(self, write: Writer) -> None:
        one = info(write, "1.tif", cell=0.5)
        grid = grid_of_collection([one], cell_size=0.75)
        assert grid.cell_size == (0.75, 0.75)
        assert (grid.rows, grid.cols) == (27, 40)
        for wrong in (0.0, -1.0, float("nan")):
            with pytest.raises(BadInputError, match="cell size"):
                grid_of_collection([one], cell_size=wrong)

    def test_mixed_reference_systems_need_out_sr(self, write: Writer) -> None:
        infos = [info(write, "1.tif"), info(write, "2.tif", crs="EPSG:32613")]
        with pytest.raises(BadInputError, match=r"EPSG:32612.*EPSG:32613.*out_sr"):
            grid_of_collection(infos)
        grid = grid_of_collection(infos, out_sr="EPSG:3857", cell_size=1.0)
        for one in infos:
            west, south, east, north = rasterio.warp.transform_bounds(one.crs_wkt, "EPSG:3857", *one.bounds)
            assert grid.bounds[0] <= west
            assert grid.bounds[1] <= south
            assert grid.bounds[2] >= east
            assert grid.bounds[3] >= north
        assert all(float(edge).is_integer() for edge in grid.bounds)
        with pytest.raises(BadInputError, match="not known"):
            grid_of_collection(infos, out_sr="EPSG:nonsense")

    def test_out_sr_takes_a_fitting_cell_size(self, write: Writer) -> None:
        one = info(write, "1.tif")
        grid = grid_of_collection([one], out_sr="EPSG:4326")
        assert 0.5 * 0.7 < grid.cell_size[1] * 111_200 < 0.5 * 1.4  # between a cell's sides on the ground

    def test_no_crs_is_refused_in_map_space_only(self, write: Writer) -> None:
        one = info(write, "1.png", crs=None, transform=Affine.identity(), driver="PNG")
        for make in (grid_of_raster, lambda raster: grid_of_collection([raster])):
            with pytest.raises(BadInputError, match=r"1\.png has no coordinate reference system.*Assign"):
                make(one)
        assert grid_of_raster(one, map_space=False).bounds == (0, -40, 60, 0)

    @pytest.mark.parametrize(
        "transform",
        [
            Affine(0.5, 0.1, 5e5, 0.1, -0.5, 5e6),
            Affine(0.5, 0, 5e5, 0, 0.5, 5e6),
            Affine(-0.5, 0, 5e5, 0, -0.5, 5e6),
        ],
    )
    def test_other_orientations_are_refused_unless_resampling_is_asked_for(
        self, write: Writer, transform: Affine
    ) -> None:
        one = info(write, "1.tif", transform=transform)
        with pytest.raises(BadInputError, match="gdalwarp"):
            grid_of_raster(one)
        with pytest.raises(BadInputError, match="gdalwarp"):
            grid_of_collection([one])
        grid = grid_of_collection([one], cell_size=0.5)
        assert grid.bounds[0] <= one.bounds[0] + 1e-6
        assert grid.bounds[2] >= one.bounds[2] - 1e-6


@pytest.mark.parametrize("name", ["photos.gpkg|layername=sites", "photos.gdb/", "s3://survey/Photos.SHP"])
def test_a_layer_of_features_is_no_imagery(name: str) -> None:
    with pytest.raises(BadInputError, match=r"layer of features.*Export the attachments into a folder"):
        expand_rasters([name])
