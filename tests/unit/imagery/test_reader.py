"""The oracle is always rasterio reading the whole file at once."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.vrt import WarpedVRT

from tasks.errors import BadInputError, RasterError
from tasks.imagery import (
    Grid,
    GridReader,
    Pixels,
    RasterInfo,
    Window,
    grid_of_collection,
    grid_of_raster,
    inspect_raster,
    prefetch,
)
from tests.unit.imagery.conftest import Writer

some_windows = st.builds(
    Window, st.integers(-40, 170), st.integers(-40, 190), st.integers(0, 90), st.integers(0, 90)
)


def padded(values: NDArray[Any], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """What a window of an array must be: zeros and False outside."""
    rows, cols = values.shape[1:]
    inside = window.intersection(Window(0, 0, rows, cols))
    expected = np.zeros((values.shape[0], *window.shape), values.dtype)
    valid = np.zeros(window.shape, bool)
    if not inside.is_empty:
        here, there = inside.slices_in(window), inside.slices_in(Window(0, 0, rows, cols))
        expected[:, *here] = values[:, *there]
        valid[here] = True
    return expected, valid


def same(first: Pixels, second: Pixels) -> bool:
    return np.array_equal(first.values, second.values) and np.array_equal(first.valid, second.valid)


def read_all(infos: Sequence[RasterInfo], grid: Grid, **how: Any) -> Pixels:
    with GridReader(infos, grid, **how) as reader:
        return reader.read(grid.window)


class TestOneRaster:
    def test_any_window_holds_the_files_pixels(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        info = inspect_raster(write("a.tif", noise))

        @given(some_windows)
        @hypothesis_settings(max_examples=60, deadline=None)
        def check(window: Window) -> None:
            pixels = reader.read(window)
            expected, valid = padded(noise, window)
            np.testing.assert_array_equal(pixels.values, expected)
            np.testing.assert_array_equal(pixels.valid, valid)

        with GridReader([info], grid_of_raster(info)) as reader:
            check()

    def test_bands_in_the_order_wanted(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        info = inspect_raster(write("a.tif", noise))
        grid = grid_of_raster(info)
        np.testing.assert_array_equal(read_all([info], grid, bands=(2, 0)).values, noise[[2, 0]])
        with pytest.raises(BadInputError, match=r"3 bands .*no band 3"):
            GridReader([info], grid, (0, 3))
        with pytest.raises(BadInputError, match="No band"):
            GridReader([info], grid, ())

    def test_one_pixel(self, write: Writer) -> None:
        info = inspect_raster(
            write("a.tif", np.full((1, 1, 1), 9, np.int16), tiled=False, blockxsize=1, blockysize=1)
        )
        with GridReader([info], grid_of_raster(info)) as reader:
            assert reader.read(Window(-1, -1, 3, 3)).values.tolist() == [[[0, 0, 0], [0, 9, 0], [0, 0, 0]]]

    def test_pixel_space(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        path = write("ü.png", noise, crs=None, transform=Affine.identity(), driver="PNG")
        info = inspect_raster(path)
        pixels = read_all([info], grid_of_raster(info, map_space=False))
        np.testing.assert_array_equal(pixels.values, noise)

    def test_a_grid_inside_the_raster_ends_at_its_own_edge(
        self, write: Writer, noise: NDArray[np.uint8]
    ) -> None:
        info = inspect_raster(write("a.tif", noise))
        west, _, _, north = info.bounds
        grid = grid_of_collection([info], extent=(west + 10, north - 30, west + 20, north - 15))
        with GridReader([info], grid) as reader:
            pixels = reader.read(grid.window.expand(2))
        assert pixels.valid.sum() == grid.rows * grid.cols == 30 * 20
        np.testing.assert_array_equal(pixels.values[:, 2:-2, 2:-2], noise[:, 30:60, 20:40])


def virtual(folder: Path, source: str, shape: tuple[int, ...], dtype: str, nodata: list[float]) -> str:
    """A VRT over a GeoTIFF beside it, with a nodata value for each band."""
    name = {"uint8": "Byte", "int16": "Int16", "uint16": "UInt16", "int32": "Int32", "uint32": "UInt32"}
    bands = "".join(
        f"""<VRTRasterBand dataType="{name.get(dtype, "Float32")}" band="{n}">
        <NoDataValue>{value}</NoDataValue>
        <SimpleSource><SourceFilename relativeToVRT="1">{source}</SourceFilename>
        <SourceBand>{n}</SourceBand></SimpleSource></VRTRasterBand>"""
        for n, value in enumerate(nodata, 1)
    )
    (folder / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="{shape[2]}" rasterYSize="{shape[1]}"><SRS>EPSG:32612</SRS>'
        f"<GeoTransform>500000, 0.5, 0, 5000000, 0, -0.5</GeoTransform>{bands}</VRTDataset>"
    )
    return str(folder / "a.vrt")


class TestValidity:
    def test_invalid_only_where_every_extracted_band_is_nodata(self, write: Writer) -> None:
        values = np.full((2, 4, 5), 50, np.uint8)
        values[0, 0, :] = 0
        values[1, :, 0] = 0
        info = inspect_raster(write("a.tif", values, nodata=0))
        grid = grid_of_raster(info)
        both = read_all([info], grid)
        assert np.argwhere(~both.valid).tolist() == [[0, 0]]
        np.testing.assert_array_equal(both.values, values)
        first = read_all([info], grid, bands=(0,))
        np.testing.assert_array_equal(first.valid, values[0] != 0)

    @pytest.mark.parametrize("nodata", [None, math.nan, -9999.0])
    def test_nan_is_never_data(self, write: Writer, nodata: float | None) -> None:
        values = np.ones((2, 3, 3), np.float32)
        values[:, 1, 1] = math.nan
        values[0, 2, 2] = math.nan
        if nodata == -9999.0:
            values[:, 0, 0] = nodata
            values[0, 0, 1], values[1, 0, 1] = nodata, math.nan
        info = inspect_raster(write("a.tif", values, nodata=nodata))
        pixels = read_all([info], grid_of_raster(info))
        expected = np.ones((3, 3), bool)
        expected[1, 1] = False
        if nodata == -9999.0:
            expected[0, 0] = expected[0, 1] = False
        np.testing.assert_array_equal(pixels.valid, expected)
        assert (pixels.values[:, ~expected] == 0).all()

    def test_internal_mask(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        path = write("a.tif", noise)
        mask = np.random.default_rng(2).integers(0, 2, noise.shape[1:]).astype(bool)
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(mask)
        info = inspect_raster(path)
        pixels = read_all([info], grid_of_raster(info))
        np.testing.assert_array_equal(pixels.valid, mask)
        np.testing.assert_array_equal(pixels.values, np.where(mask, noise, 0))

    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32"])
    @pytest.mark.parametrize("nodata", [0, 7, 200, -9999, 7.5, math.nan])
    def test_nodata_is_what_gdal_says_it_is(
        self, write: Writer, tmp_path: Path, dtype: str, nodata: float
    ) -> None:
        """Whole numbers are compared without asking GDAL for masks; the outcome must be the same."""
        kind = np.dtype(dtype)
        held = [0, 7, 8, 200, -9999] if kind.kind != "u" else [0, 7, 8, 200]
        values = np.random.default_rng(4).choice(held, (2, 40, 50)).astype(kind)
        write("a.tif", values)
        # Through a VRT, which may declare any number whatever the type; the second band's is another one.
        path = virtual(tmp_path, "a.tif", values.shape, dtype, [nodata, 8])
        with rasterio.open(path) as dataset:
            expected = (dataset.read_masks() != 0).any(axis=0)
        info = inspect_raster(path)
        pixels = read_all([info], grid_of_raster(info))
        np.testing.assert_array_equal(pixels.valid, expected)
        np.testing.assert_array_equal(pixels.values, np.where(expected, values, 0))

    def test_validity_without_a_mask_takes_no_memory(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        info = inspect_raster(write("a.tif", noise))
        with GridReader([info], grid_of_raster(info)) as reader:
            assert reader.read(Window(3, 4, 50, 60)).valid.strides == (0, 0)
            edge = reader.read(Window(-1, 0, 5, 5))
        assert edge.valid.sum() == 20
        assert edge.valid.flags.writeable

    @pytest.mark.parametrize("bands", [None, (0, 1, 2)])
    def test_alpha_masks(
        self, write: Writer, noise: NDArray[np.uint8], bands: tuple[int, ...] | None
    ) -> None:
        alpha = np.random.default_rng(2).choice([0, 1, 255], noise.shape[1:]).astype(np.uint8)
        path = write("a.tif", np.concatenate([noise, alpha[None]]), photometric="RGB", alpha="YES")
        with rasterio.open(path) as dataset:
            assert dataset.colorinterp[3] == ColorInterp.alpha
        info = inspect_raster(path)
        pixels = read_all([info], grid_of_raster(info), bands=bands)
        np.testing.assert_array_equal(pixels.valid, alpha != 0)
        np.testing.assert_array_equal(pixels.values[:3], np.where(alpha != 0, noise, 0))


def cut(
    write: Writer, values: NDArray[Any], rows: list[int], cols: list[int], **how: Any
) -> list[RasterInfo]:
    """The array as files cut at ``rows`` and ``cols``, in a shuffled order."""
    infos = []
    for top, bottom in zip([0, *rows], [*rows, values.shape[1]], strict=True):
        for left, right in zip([0, *cols], [*cols, values.shape[2]], strict=True):
            corner = (500_000.0 + left * 0.5, 5_000_000.0 - top * 0.5)
            path = write(f"cut_{top}_{left}.tif", values[:, top:bottom, left:right], corner=corner, **how)
            infos.append(inspect_raster(path))
    np.random.default_rng(3).shuffle(infos)
    return infos


class TestMosaics:
    @given(
        st.lists(st.integers(1, 149), max_size=3, unique=True),
        st.lists(st.integers(1, 169), max_size=3, unique=True),
    )
    @hypothesis_settings(
        max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_any_cut_gives_the_whole(
        self, write: Writer, noise: NDArray[np.uint8], rows: list[int], cols: list[int]
    ) -> None:
        values = noise.copy()
        values[:, 40:60, 50:90] = 0
        infos = cut(write, values, sorted(rows), sorted(cols), nodata=0)
        grid = grid_of_collection(infos)
        pixels = read_all(infos, grid)
        np.testing.assert_array_equal(pixels.values, values)
        np.testing.assert_array_equal(pixels.valid, (values != 0).any(axis=0))

    def test_the_first_valid_raster_wins(self, write: Writer) -> None:
        upper = np.full((1, 4, 4), 1, np.uint8)
        upper[0, :, 2:] = 0
        first = inspect_raster(write("1.tif", upper, nodata=0))
        for nodata in (None, 0):
            second = inspect_raster(write("2.tif", np.full((1, 4, 6), 2, np.uint8), nodata=nodata))
            grid = grid_of_collection([first, second])
            assert read_all([first, second], grid).values[0, 0].tolist() == [1, 1, 2, 2, 2, 2]
            assert read_all([second, first], grid).values[0, 0].tolist() == [2] * 6

    def test_a_raster_below_one_that_holds_everything_is_not_read(
        self, write: Writer, noise: NDArray[np.uint8]
    ) -> None:
        upper, lower = inspect_raster(write("1.tif", noise)), inspect_raster(write("2.tif", noise))
        grid = grid_of_collection([upper, lower])
        Path(lower.uri).unlink()
        with GridReader([upper, lower], grid) as reader:
            pixels = reader.read(grid.window)
        np.testing.assert_array_equal(pixels.values, noise)
        assert pixels.values.flags.writeable

    def test_mixed_types_widen(self, write: Writer) -> None:
        first = inspect_raster(write("1.tif", np.full((1, 4, 4), 200, np.uint8)))
        second = inspect_raster(
            write("2.tif", np.full((1, 4, 4), -300, np.int16), corner=(500_002.0, 5_000_000.0))
        )
        pixels = read_all([first, second], grid_of_collection([first, second]))
        assert pixels.values.dtype == np.int16
        assert pixels.values[0, 0].tolist() == [200] * 4 + [-300] * 4

    def test_rasters_of_any_kind_lie_over_each_other_in_order(self, write: Writer) -> None:
        """Other reference systems, cells, types, ways of lying: as if each were read alone."""
        random = np.random.default_rng(6)
        here = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
        lon, lat = pyproj.Transformer.from_crs(32612, 4326, always_xy=True).transform(500_030, 4_999_980)
        kinds: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
            "own": (random.integers(0, 99, (1, 90, 80)).astype(np.uint8), {"nodata": 0}),
            "degrees": (
                random.integers(-900, 900, (1, 70, 90)).astype(np.int16),
                {"crs": "EPSG:4326", "transform": Affine(8e-6, 0, lon, 0, -6e-6, lat)},
            ),
            "turned": (
                random.random((1, 60, 60)).astype(np.float32) * 999,
                {"transform": here @ Affine.rotation(25) @ Affine.scale(2.0)},
            ),
            "south-up": (
                random.integers(0, 99, (1, 99, 99)).astype(np.uint8),
                {"transform": here @ Affine.translation(30, 99) @ Affine.scale(1, -1)},
            ),
        }
        infos = [inspect_raster(write(f"{name}.tif", *kind[:1], **kind[1])) for name, kind in kinds.items()]
        grid = grid_of_collection(infos, out_sr="EPSG:32612")
        for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
            ordered = [infos[number] for number in order]
            expected = np.zeros((1, *grid.shape))
            valid = np.zeros(grid.shape, np.bool_)
            for info in ordered:
                alone = read_all([info], grid)
                taken = alone.valid & ~valid
                assert taken.any()
                expected[:, taken] = alone.values[:, taken]
                valid |= taken
            with GridReader(ordered, grid) as reader:
                for window in grid.tiles(67, 53):
                    inside = window.intersection(grid.window)
                    here_on_grid = inside.slices_in(grid.window)
                    pixels = reader.read(inside)
                    np.testing.assert_array_equal(pixels.values, expected[:, *here_on_grid])
                    np.testing.assert_array_equal(pixels.valid, valid[here_on_grid])

    def test_different_band_counts_need_a_choice(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        infos = [inspect_raster(write("1.tif", noise)), inspect_raster(write("2.tif", noise[:1]))]
        grid = grid_of_collection(infos)
        with pytest.raises(BadInputError, match=r"3 bands and .*2\.tif has 1"):
            GridReader(infos, grid)
        assert read_all(infos, grid, bands=(0,)).values.shape[0] == 1

    def test_touching_names_the_rasters_of_a_window(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        infos = cut(write, noise, [75], [85])
        grid = grid_of_collection(infos)
        with GridReader(infos, grid) as reader:
            assert {info.uri for info in reader.touching(Window(0, 0, 75, 85))} == {
                info.uri for info in infos if info.uri.endswith("cut_0_0.tif")
            }
            assert reader.touching(Window(74, 84, 2, 2)) == infos
            assert reader.touching(Window(-10, -10, 5, 5)) == []
            assert sum(w.rows * w.cols for w in reader.footprints()) == 150 * 170

    def test_many_files_stay_within_the_open_handles(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        infos = cut(write, noise[:1], list(range(15, 150, 15)), list(range(17, 170, 17)))
        assert len(infos) == 100
        pixels = read_all(infos, grid_of_collection(infos))
        np.testing.assert_array_equal(pixels.values, noise[:1])


class TestResampling:
    @pytest.mark.parametrize("method", ["nearest", "bilinear", "cubic", "average"])
    @pytest.mark.parametrize("kind", ["plain", "nodata", "alpha", "mask", "float"])
    def test_any_window_holds_the_pixels_of_the_whole(
        self, write: Writer, noise: NDArray[np.uint8], method: Any, kind: str
    ) -> None:
        values: NDArray[Any] = noise
        how: dict[str, Any] = {}
        if kind == "nodata":
            values, how = np.where(noise < 60, 0, noise).astype(np.uint8), {"nodata": 0}
        elif kind == "alpha":
            values = np.concatenate([noise, np.where(noise[:1] < 90, 0, 255).astype(np.uint8)])
            how = {"photometric": "RGB", "alpha": "YES"}
        elif kind == "float":
            values = np.where(noise < 60, math.nan, noise).astype(np.float32)
        path = write("a.tif", values, **how)
        if kind == "mask":
            with rasterio.open(path, "r+") as dataset:
                dataset.write_mask(noise[0] > 90)
        info = inspect_raster(path)
        native = grid_of_raster(info)
        a, _, c, _, e, f = native.transform
        half_shifted = Grid(native.crs_wkt, (a, 0, c + a / 2, 0, e, f + e / 2), native.rows, native.cols)
        reprojected = grid_of_collection([info], out_sr="EPSG:3857")
        chooser = np.random.default_rng(4)
        for grid in (half_shifted, reprojected):
            with GridReader([info], grid, resampling=method) as reader:
                everything = reader.read(grid.window)
                for _ in range(8):
                    row, col = chooser.integers(-20, 150, 2).tolist()
                    window = Window(row, col, 37, 53)
                    expected, inside = padded(everything.values, window)
                    valid, _ = padded(everything.valid[None], window)
                    pixels = reader.read(window)
                    np.testing.assert_array_equal(pixels.values, expected)
                    np.testing.assert_array_equal(pixels.valid, valid[0] & inside)

    def test_it_agrees_with_gdal(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        path = write("a.tif", noise)
        info = inspect_raster(path)
        grid = grid_of_collection([info], out_sr="EPSG:3857")
        pixels = read_all([info], grid, resampling="nearest")
        with (
            rasterio.open(path) as dataset,
            WarpedVRT(
                dataset,
                crs="EPSG:3857",
                transform=Affine(*grid.transform),
                width=grid.cols,
                height=grid.rows,
                tolerance=1e-9,
                add_alpha=True,
            ) as view,
        ):
            expected = view.read()
        np.testing.assert_array_equal(pixels.values, expected[:3])
        np.testing.assert_array_equal(pixels.valid, expected[3] != 0)
        assert pixels.valid.mean() > 0.9

    def test_pixels_come_from_the_exact_place(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        """Over 500 km lines are curved: each pixel is looked up by itself with pyproj."""
        info = inspect_raster(write("a.tif", noise, cell=3000.0))
        grid = grid_of_collection([info], out_sr="EPSG:3857")
        pixels = read_all([info], grid, resampling="nearest")
        rows, cols = np.mgrid[0 : grid.rows, 0 : grid.cols] + 0.5
        to_source = pyproj.Transformer.from_crs("EPSG:3857", "EPSG:32612", always_xy=True)
        x, y = to_source.transform(*grid.to_map(cols, rows))
        col, row = (x - 500_000.0) / 3000.0, (5_000_000.0 - y) / 3000.0
        inside = (col >= 0) & (col < 170) & (row >= 0) & (row < 150)
        expected = noise[:, np.clip(row, 0, 149).astype(int), np.clip(col, 0, 169).astype(int)]
        assert (pixels.valid != inside).sum() <= 3
        both = pixels.valid & inside
        assert (pixels.values[:, both] != expected[:, both]).any(axis=0).sum() <= 3

    def test_validity_follows_nodata_mask_and_alpha(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        """At twice the resolution, nearest: each source pixel becomes four."""
        keep = np.random.default_rng(5).integers(0, 2, noise.shape[1:]).astype(bool)
        some = keep | (np.arange(170) % 3 == 0)  # band 1 keeps more than the others
        masked = write("m.tif", noise)
        with rasterio.open(masked, "r+") as dataset:
            dataset.write_mask(keep)
        alpha = np.concatenate([noise, (keep * 255).astype(np.uint8)[None]])
        paths = {
            masked: keep,
            write("a.tif", alpha, photometric="RGB", alpha="YES"): keep,
            write("n.tif", np.where([some, keep, keep], noise, 0).astype(np.uint8), nodata=0): some,
            write("f.tif", np.where([some, keep, keep], noise, math.nan).astype(np.float32)): some,
            write("g.tif", np.where(keep, noise, np.float32(-5)), nodata=-5): keep,
        }
        for path, expected in paths.items():
            info = inspect_raster(path)
            grid = grid_of_collection([info], cell_size=0.25)
            pixels = read_all([info], grid, resampling="nearest", bands=(0, 1, 2))
            np.testing.assert_array_equal(pixels.valid, expected.repeat(2, 0).repeat(2, 1), err_msg=path)
            first = np.where(expected, noise[0], 0).repeat(2, 0).repeat(2, 1)
            np.testing.assert_array_equal(pixels.values[0], first, err_msg=path)

    def test_nodata_of_one_band_is_no_data_beside_the_other_bands(self, write: Writer) -> None:
        values = np.full((2, 20, 20), 200, np.uint8)
        values[0, :, :10] = 0
        info = inspect_raster(write("a.tif", values, nodata=0))
        pixels = read_all([info], grid_of_collection([info], cell_size=0.3))
        assert set(np.unique(pixels.values[0])) == {0, 200}  # no mixture of both

    def test_nodata_does_not_bleed_into_data(self, write: Writer) -> None:
        values = np.full((1, 40, 40), 100, np.int16)
        values[:, :, 20:] = -9999
        info = inspect_raster(write("a.tif", values, nodata=-9999))
        pixels = read_all([info], grid_of_collection([info], cell_size=0.3))
        assert set(np.unique(pixels.values[0][pixels.valid])) == {100}
        assert 0.4 < pixels.valid.mean() < 0.6

    @pytest.mark.parametrize(
        "transform", [Affine(0.5, 0, 5e5, 0, 0.5, 5e6), Affine(0, 0.5, 5e5, 0.5, 0, 5e6)]
    )
    def test_other_orientations_are_turned(
        self, write: Writer, noise: NDArray[np.uint8], transform: Affine
    ) -> None:
        info = inspect_raster(write("a.tif", noise, transform=transform))
        pixels = read_all([info], grid_of_collection([info], cell_size=0.5), resampling="nearest")
        expected = noise[:, ::-1] if transform.e else noise.transpose(0, 2, 1)[:, ::-1]
        np.testing.assert_array_equal(pixels.values, expected)
        assert pixels.valid.all()

    def test_pixel_space_is_never_resampled(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        bare = inspect_raster(write("a.png", noise, crs=None, transform=Affine.identity(), driver="PNG"))
        mapped = inspect_raster(write("b.tif", noise))
        with pytest.raises(BadInputError, match="no reference system"):
            GridReader([bare], grid_of_raster(mapped))
        half = Grid(None, (2.0, 0, 0, 0, -2.0, 0), 75, 85)
        with pytest.raises(BadInputError, match="nothing is resampled"):
            GridReader([bare], half)


class TestFailure:
    def test_a_cut_off_file_is_an_error_that_names_file_and_window(
        self, write: Writer, noise: NDArray[np.uint8]
    ) -> None:
        path = Path(write("Größe.tif", noise))
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        info = inspect_raster(str(path))
        with GridReader([info], grid_of_raster(info)) as reader:
            assert reader.read(Window(0, 0, 10, 10)).valid.all()
            for _ in range(2):  # and again: a failed handle is not kept
                with pytest.raises(
                    RasterError, match=r"Größe\.tif could not be read at rows 100 to 150.*copy"
                ):
                    reader.read(Window(100, 0, 60, 170))

    def test_a_cut_off_jpeg_is_an_error(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        smooth = np.broadcast_to(np.arange(170, dtype=np.uint8), noise.shape)
        path = Path(write("a.jpg", smooth, driver="JPEG"))
        path.write_bytes(path.read_bytes()[:-200])
        info = inspect_raster(str(path))
        with pytest.raises(RasterError, match="could not be read"):
            read_all([info], grid_of_raster(info, map_space=False))

    def test_a_file_that_changed_shape_is_noticed(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        info = inspect_raster(write("a.tif", noise))
        write("a.tif", noise[:, :100])
        with pytest.raises(RasterError, match="has changed"):
            read_all([info], grid_of_raster(info))

    def test_a_closed_reader_says_so(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        info = inspect_raster(write("a.tif", noise))
        reader = GridReader([info], grid_of_raster(info))
        reader.read(Window(0, 0, 1, 1))
        reader.close()
        reader.close()
        with pytest.raises(ValueError, match="closed"):
            reader.read(Window(0, 0, 1, 1))


class TestThreads:
    def test_many_threads_read_what_one_reads(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        infos = [*cut(write, noise, [70], [60]), inspect_raster(write("w.tif", noise, crs="EPSG:32613"))]
        grid = grid_of_collection(infos[:4])
        windows = list(grid.tiles(40, 40)) * 3
        with GridReader(infos, grid) as reader:
            alone = [reader.read(window) for window in windows]
            with ThreadPoolExecutor(8) as pool:
                together = list(pool.map(reader.read, windows))
            ahead = list(prefetch(reader, windows, threads=3, depth=5))
        assert all(same(*pair) for pair in zip(alone, together, strict=True))
        assert [window for window, _ in ahead] == windows
        assert all(same(one, other) for one, (_, other) in zip(alone, ahead, strict=True))
