"""Positions on the map against the image that a known model looks at."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC

from tasks.errors import BadInputError
from tasks.imagery import GridReader, RasterInfo, grid_of_raster, inspect_raster
from tasks.imagery.image_space import image_transform, in_pixel_space
from tasks.imagery.places import Place
from tests.unit.imagery.conftest import Writer

HEIGHT, WIDTH = 600, 800
# Sheared and turned, as a raw image lies on the map: degrees per pixel.
TO_MAP = Affine(1e-5, 2e-6, 10.0, 1e-6, -1.1e-5, 50.0)
TO_IMAGE = ~TO_MAP
LON, LAT, LEVEL = 10.004, 49.997, 120.0
LON_SCALE, LAT_SCALE, LEVEL_SCALE = 0.006, 0.005, 500.0
COLS, ROWS = (axis.ravel() for axis in np.meshgrid(np.linspace(0, WIDTH, 9), np.linspace(0, HEIGHT, 9)))


def on_map(to_map: Affine) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return to_map.a * COLS + to_map.b * ROWS + to_map.c, to_map.d * COLS + to_map.e * ROWS + to_map.f


XS, YS = on_map(TO_MAP)

Sensor = Callable[..., RasterInfo]


def rpcs(*, lean: tuple[float, float] = (0.0, 0.0), bend: float = 0.0) -> RPC:
    """The affine as rational polynomials; ``lean`` is px per metre of height, ``bend`` a cubic term."""
    # Lines and samples of RPCs count from the middle of the first pixel.
    col, row = (value - 0.5 for value in TO_IMAGE @ (LON, LAT))
    one = [1.0] + [0.0] * 19
    samples = [0.0, TO_IMAGE.a * LON_SCALE / 400, TO_IMAGE.b * LAT_SCALE / 400, lean[0] * LEVEL_SCALE / 400]
    lines = [0.0, TO_IMAGE.d * LON_SCALE / 300, TO_IMAGE.e * LAT_SCALE / 300, lean[1] * LEVEL_SCALE / 300]
    curved = [0.0] * 16
    curved[11 - 4] = bend  # the longitude's third power
    return RPC(
        height_off=LEVEL,
        height_scale=LEVEL_SCALE,
        lat_off=LAT,
        lat_scale=LAT_SCALE,
        long_off=LON,
        long_scale=LON_SCALE,
        line_off=row,
        line_scale=300.0,
        samp_off=col,
        samp_scale=400.0,
        line_num_coeff=lines + [0.0] * 16,
        line_den_coeff=one,
        samp_num_coeff=samples + curved,
        samp_den_coeff=one,
    )


def point(col: float, row: float, bend: Callable[[float, float], float] = lambda *_: 0.0) -> Any:
    x, y = TO_MAP @ (col, row)
    return GroundControlPoint(row=row, col=col + bend(col, row), x=x, y=y)


@pytest.fixture
def sensor(tmp_path: Path) -> Sensor:
    """Writes a raw image that carries RPCs or control points."""

    def _sensor(name: str = "raw.tif", **carries: Any) -> RasterInfo:
        profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": 1, "dtype": "uint8"}
        with rasterio.open(tmp_path / name, "w", **profile) as dataset:
            for key, value in carries.items():
                setattr(dataset, key, value)
        return inspect_raster(str(tmp_path / name))

    return _sensor


def apart(found: tuple[NDArray[Any], NDArray[Any]], cols: Any = COLS, rows: Any = ROWS) -> float:
    return float(np.hypot(found[0] - cols, found[1] - rows).max())


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


class TestRationalPolynomials:
    def test_at_their_own_height(self, sensor: Sensor) -> None:
        transform = image_transform(sensor(rpcs=rpcs(lean=(0.2, -0.1))))
        assert transform.kind == "rpcs"
        assert CRS.from_wkt(transform.crs_wkt).to_epsg() == 4326
        assert transform.height == LEVEL
        assert apart(transform.to_image(XS, YS)) < 0.01

    def test_at_another_height(self, sensor: Sensor) -> None:
        transform = image_transform(sensor(rpcs=rpcs(lean=(0.2, -0.1))), height=LEVEL + 50)
        assert transform.height == LEVEL + 50
        assert apart(transform.to_image(XS, YS), COLS + 10, ROWS - 5) < 0.01
        with pytest.raises(BadInputError, match="not a number"):
            image_transform(sensor(rpcs=rpcs()), height=float("nan"))

    def test_a_cubic_is_followed(self, sensor: Sensor) -> None:
        transform = image_transform(sensor(rpcs=rpcs(bend=0.02)))
        expected = COLS + 400 * 0.02 * ((XS - LON) / LON_SCALE) ** 3
        assert np.abs(expected - COLS).max() > 2
        assert apart(transform.to_image(XS, YS), expected) < 0.01

    @pytest.mark.parametrize(
        ("lean", "quarters"),
        [
            ((0.02, -0.2), 0),
            ((0.2, 0.1), 3),
            ((-0.02, 0.2), 2),
            ((-0.2, -0.1), 1),
            ((0.0, 0.0), 0),
            ((0.0, 1e-3), 0),  # less than a pixel for any height there is: seen from straight above
        ],
    )
    def test_what_stands_upright_points_up(
        self, sensor: Sensor, lean: tuple[float, float], quarters: int
    ) -> None:
        transform = image_transform(sensor(rpcs=rpcs(lean=lean)))
        assert transform.up_quarters == quarters
        if abs(lean[0]) + abs(lean[1]) > 0.1:
            # The direction of height, seen in a chip that is turned by so many quarters, is upwards.
            col, row = ~Place(0, 0, 10, 10, 90.0 * quarters).to_grid @ (5 + lean[0], 5 + lean[1])
            assert row - 5 < -abs(col - 5)

    def test_what_is_far_away_stays_far_away(self, sensor: Sensor) -> None:
        # Twenty footprints to the east this cubic has turned round and is back in the image.
        transform = image_transform(sensor(rpcs=rpcs(bend=-0.02)))
        turned_back = LON + LON_SCALE / 0.02**0.5
        cols, _ = transform.to_image([turned_back], [LAT])
        assert cols[0] > 2 * WIDTH
        xs = np.linspace(LON, LON + 1, 5000)
        assert (np.diff(transform.to_image(xs, np.full(5000, LAT))[0]) > 0).all(), "without a jump or fold"

    def test_shapes_and_threads(self, sensor: Sensor) -> None:
        transform = image_transform(sensor(rpcs=rpcs()))
        cols, rows = transform.to_image(XS.reshape(9, 9), YS.reshape(9, 9))
        assert cols.shape == rows.shape == (9, 9)
        assert apart((cols.ravel(), rows.ravel())) < 0.01
        assert [axis.shape for axis in transform.to_image([], [])] == [(0,), (0,)]
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: transform.to_image(XS, YS), range(40)):
                assert apart(found) < 0.01


class TestControlPoints:
    def grid_of_points(self, bend: Callable[[float, float], float] = lambda *_: 0.0) -> list[Any]:
        return [
            point(col, row, bend) for row in np.linspace(0, HEIGHT, 7) for col in np.linspace(0, WIDTH, 7)
        ]

    @pytest.mark.parametrize("corners_only", [True, False])
    def test_an_affine_is_found_again(self, sensor: Sensor, corners_only: bool) -> None:
        points = self.grid_of_points()
        if corners_only:
            points = [point(0, 0), point(WIDTH, 0), point(WIDTH, HEIGHT), point(0, HEIGHT)]
        transform = image_transform(sensor(gcps=(points, CRS.from_epsg(4326))))
        assert transform.kind == "gcps"
        assert transform.up_quarters == 0
        assert transform.height is None
        assert transform.residual_px < 0.01
        assert apart(transform.to_image(XS, YS)) < 0.01

    def test_a_map_in_metres(self, sensor: Sensor) -> None:
        to_map = Affine(0.4, 0.3, 500_000.0, 0.3, -0.4, 5_000_000.0)
        points = []
        for col, row in zip(COLS, ROWS, strict=True):
            x, y = to_map @ (float(col), float(row))
            points.append(GroundControlPoint(row=row, col=col, x=x, y=y))
        transform = image_transform(sensor(gcps=(points, CRS.from_epsg(32612))))
        assert CRS.from_wkt(transform.crs_wkt).to_epsg() == 32612
        assert apart(transform.to_image(*on_map(to_map))) < 0.01

    def test_what_no_polynomial_follows_goes_through_the_points(self, sensor: Sensor) -> None:
        def bend(col: float, _: float) -> float:
            return float(4 * np.sin(col / 60))

        points = self.grid_of_points(bend)
        transform = image_transform(sensor(gcps=(points, CRS.from_epsg(4326))))
        assert transform.residual_px < 0.01
        found = transform.to_image([p.x for p in points], [p.y for p in points])
        assert apart(found, [p.col for p in points], [p.row for p in points]) < 0.01

    def test_points_without_a_reference_system(self, sensor: Sensor) -> None:
        info = sensor(gcps=(self.grid_of_points(), CRS()))
        with pytest.raises(BadInputError, match="no reference system"):
            image_transform(info)

    def test_points_on_a_line_are_refused(self, sensor: Sensor) -> None:
        points = [point(col, col) for col in (0.0, 100.0, 200.0, 300.0)]
        info = sensor(gcps=(points, CRS.from_epsg(4326)))
        with pytest.raises(BadInputError, match="cannot be used"):
            image_transform(info)


class TestAffine:
    @pytest.mark.parametrize(
        "to_map",
        [
            Affine(0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0),
            Affine(0.4, 0.3, 500_000.0, 0.3, -0.4, 5_000_000.0),
            Affine(0.5, 0.0, 500_000.0, 0.0, 0.5, 5_000_000.0),
        ],
    )
    def test_any_affine(self, write: Writer, noise: NDArray[np.uint8], to_map: Affine) -> None:
        info = inspect_raster(write("a.tif", noise, transform=to_map))
        transform = image_transform(info)
        assert (transform.kind, transform.up_quarters, transform.reach) == ("affine", 0, None)
        assert CRS.from_wkt(transform.crs_wkt).to_epsg() == 32612
        assert apart(transform.to_image(*on_map(to_map))) < 1e-6

    def test_none_at_all(self, write: Writer, noise: NDArray[np.uint8]) -> None:
        with pytest.raises(BadInputError, match="carries no transform"):
            image_transform(inspect_raster(write("a.tif", noise, crs=None)))

    def test_rpcs_go_before_control_points_before_the_affine(self, sensor: Sensor) -> None:
        points = ([point(0, 0), point(WIDTH, 0), point(0, HEIGHT)], CRS.from_epsg(4326))
        assert image_transform(sensor("both.tif", gcps=points, rpcs=rpcs())).kind == "rpcs"
        georeferenced = {"crs": CRS.from_epsg(4326), "transform": TO_MAP}
        assert image_transform(sensor("all.tif", **georeferenced, rpcs=rpcs())).kind == "rpcs"
        assert image_transform(sensor("affine.tif", **georeferenced)).kind == "affine"


def test_pixel_space_is_the_file_as_it_lies(write: Writer, noise: NDArray[np.uint8]) -> None:
    turned = Affine(0.4, 0.3, 500_000.0, 0.3, -0.4, 5_000_000.0)
    info = in_pixel_space(inspect_raster(write("a.tif", noise, transform=turned)))
    assert info.crs_wkt is None
    grid = grid_of_raster(info, map_space=False)
    assert grid.bounds == (0, -noise.shape[1], noise.shape[2], 0)
    with GridReader([info], grid) as reader:
        np.testing.assert_array_equal(reader.read(grid.window).values, noise)
