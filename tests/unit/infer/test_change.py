"""Change detection: two dates on one grid, the same however either is cut; nodata where one is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from tasks.errors import BadInputError
from tasks.imagery import BandSample, GridReader, RasterInfo, RasterSample, Window, inspect_raster
from tasks.infer.change import PairReader, bands_of_pair
from tasks.infer.describe import FunctionDescription
from tasks.infer.engine import Source, run_shards
from tasks.infer.operators import PixelOperator, read_pixels
from tasks.infer.parameters import ClassifyPixelsParameters, DetectChangeParameters
from tasks.infer.plan import make_plan
from tasks.infer.planned import Plan
from tasks.infer.shards import TileGeometry
from tasks.package import ModelDefinition, Package

GEOMETRY = TileGeometry(rows=32, cols=40, padding=4)


def package(**more: Any) -> Package:
    definition = ModelDefinition.model_validate(
        {
            "ModelType": "ImageClassification",
            "ModelName": "ChangeDetector",
            "Classes": [{"Value": 0, "Name": "Same"}, {"Value": 1, "Name": "Other"}],
            "ExtractBands": [0, 1, 2, 3],
            "ImageHeight": 40,
            "ImageWidth": 48,
            **more,
        }
    )
    return Package(folder=Path("/nowhere"), definition=definition, digest="d1", name="pairs")


def planned(before: list[RasterInfo], after: list[RasterInfo], pack: Any = None, **more: Any) -> Plan:
    values = {"from_raster": ["a"], "to_raster": ["b"], "model": "m", "output_classified_raster": "changes"}
    pack = pack or package()
    return make_plan(
        DetectChangeParameters.model_validate({"shard_size": 64, **values, **more}),
        rasters=before,
        after=after,
        package=pack,
        package_uri="m",
        description=FunctionDescription(
            scalars={},
            geometry=GEOMETRY,
            extract_bands=pack.definition.extract_bands,
            output_dtype="int32",
            output_nodata=None,
            fields=[],
        ),
        processor="CPU",
    )


def info(name: str, **more: Any) -> RasterInfo:
    values: dict[str, Any] = {
        "uri": f"s3://imagery/{name}.tif",
        "width": 300,
        "height": 200,
        "band_count": 2,
        "dtype": "uint8",
        "nodata": None,
        "crs_wkt": CRS.from_epsg(32612).to_wkt(),
        "transform": (0.5, 0.0, 500_000.0, 0.0, -0.5, 4_900_000.0),
        "block_shape": (64, 64),
        "band_names": ("Band_1", "Band_2"),
        "colorinterp": ("gray", "undefined"),
        "identity": f"identity of {name}",
        **more,
    }
    return RasterInfo(**values)


def compared(pixels: Any, mask: Any) -> Any:
    """1 where the sums of the two dates' bands differ by more than 10."""
    assert not pixels[:, mask == 0].any(), "pixels that one date lacks are handed over as zero"
    total = pixels.astype(np.int64)
    far = np.abs(total[:2].sum(axis=0) - total[2:].sum(axis=0)) > 10
    pad = GEOMETRY.padding
    return far[None, pad:-pad, pad:-pad].astype(np.int32)


def result_of(plan: Plan, host: Any, sink: Any) -> Any:
    """The output raster, computed by the engine over real readers."""
    grid = plan.grids[0]
    assert plan.pixel_format is not None
    before = [plan.rasters[index] for index in grid.rasters]
    after = [plan.rasters[index] for index in grid.after]
    with (
        GridReader(before, grid.grid, tuple(plan.extract_bands)) as one,
        GridReader(after, grid.grid, tuple(plan.after_bands)) as two,
    ):
        source = Source(grid.grid, PairReader(one, two), pixel_bytes=5, remote=False, props={})
        operator = PixelOperator(plan.geometry, plan.pixel_format)
        run_shards(plan.shards, {0: source}, host(compared), operator, sink, geometry=plan.geometry)
    region = Window(*grid.region)
    made = np.full(region.shape, plan.pixel_format.nodata, plan.pixel_format.dtype)
    for shard in plan.shards:
        made[shard.target.slices_in(region)] = read_pixels(sink.results[shard.key])
    return made


@pytest.mark.parametrize("cuts", [(1, 1), (3, 2)])
def test_pixels_equal_the_comparison_of_whole_arrays_however_files_are_cut(
    make_scene: Any, fake_host: Any, memory_sink: Any, noise: Any, cuts: tuple[int, int]
) -> None:
    later = noise.copy()
    later[:, 50:90, 60:140] += 30
    later[:, 120:, :30] = 0  # nodata
    before, after = make_scene(noise, cuts=cuts[0]), make_scene(later, cuts=cuts[1], nodata=0)
    results = [
        result_of(planned(before.infos, after.infos, shard_size=size), fake_host, memory_sink())
        for size in (64, 128)
    ]
    far = np.abs(noise.astype(int).sum(axis=0) - later.astype(int).sum(axis=0)) > 10
    # 0 is a class of its own here, so that the largest value is nodata.
    expected = np.where((later != 0).any(axis=0), far, 255).astype(np.uint8)
    np.testing.assert_array_equal(results[0], expected)
    np.testing.assert_array_equal(results[1], expected)
    assert set(np.unique(expected)) == {0, 1, 255}


def test_only_the_common_ground_of_two_crs_cell_sizes_and_dtypes_is_computed(
    make_scene: Any, fake_host: Any, memory_sink: Any, tmp_path: Path
) -> None:
    import rasterio
    from rasterio.warp import transform

    before = make_scene(np.full((2, 120, 160), 100, np.uint8))
    # The later date in degrees, coarser, as float with NaN, over the eastern half and beyond.
    (west,), (north,) = transform("EPSG:32612", "EPSG:4326", [500_040.0], [4_900_010.0])
    cell = 1.2e-5
    path = tmp_path / "später.tif"
    array = np.full((2, 120, 120), 100, np.float32)
    array[:, :, :5] = np.nan
    profile = {"driver": "GTiff", "height": 120, "width": 120, "count": 2, "dtype": "float32"}
    place = Affine(cell, 0, west, 0, -cell, north)
    with rasterio.open(path, "w", crs="EPSG:4326", transform=place, **profile) as dataset:
        dataset.write(array)
    plan = planned(before.infos, [inspect_raster(str(path))])
    _, col, rows, cols = plan.grids[0].region
    assert 70 < col < 82
    assert (rows, col + cols) == (120, 160)
    made = result_of(plan, fake_host, memory_sink())
    assert set(np.unique(made)) == {0, 255}
    assert (made[:, -60:] == 0).all()
    assert (made[:, :8] == 255).all(), "NaN is nodata"
    assert plan.grids[0].shown == [1]


def test_dates_without_common_ground_are_refused() -> None:
    far = info("far", transform=(0.5, 0.0, 510_000.0, 0.0, -0.5, 4_900_000.0))
    with pytest.raises(BadInputError, match=r"do not overlap.*500000.*510000.*same ground"):
        planned([info("a")], [far])
    # One of several may lie apart.
    plan = planned([info("a")], [far, info("b")])
    assert plan.grids[0].region == (0, 0, 200, 300)
    with pytest.raises(BadInputError, match="extent"):
        planned([info("a")], [info("b")], extent=[0, 0, 1, 1])


def test_a_shard_is_known_by_the_rasters_of_both_dates() -> None:
    base = {shard.key for shard in planned([info("a")], [info("b")]).shards}
    assert not base & {shard.key for shard in planned([info("b")], [info("a")]).shards}
    assert not base & {shard.key for shard in planned([info("a")], [info("c")]).shards}
    assert planned([info("a")], [info("b")]).run_key == planned([info("a")], [info("b")]).run_key


def test_shards_lie_only_where_both_dates_do() -> None:
    wide = info("wide", width=3000, height=200)
    east = info("east", transform=(0.5, 0.0, 501_000.0, 0.0, -0.5, 4_900_000.0))
    plan = planned([wide], [info("west"), east])
    columns = {shard.target.col for shard in plan.shards}
    assert len(plan.shards) < 40
    assert not [col for col in columns if 400 <= col < 1900]


@pytest.mark.parametrize(
    ("bands", "counts", "message"),
    [
        ([0, 1, 2], (2, 2), "no pair of dates"),
        ([0, 1, 2, 5], (2, 2), "no pair of dates"),
        ([0, 1, 2, 3, 4, 5], (3, 2), "the raster has 2"),
        (["Red", "Blue"], (2, 2), "no pair of dates"),
    ],
)
def test_bands_that_make_no_pair_are_refused(bands: list[Any], counts: tuple[int, int], message: str) -> None:
    def with_bands(name: str, count: int) -> RasterInfo:
        names = tuple(f"Band_{number}" for number in range(1, count + 1))
        return info(name, band_count=count, band_names=names, colorinterp=("gray",) * count)

    with pytest.raises(BadInputError, match=message):
        planned([with_bands("a", counts[0])], [with_bands("b", counts[1])], package(ExtractBands=bands))


def test_more_bands_than_the_package_takes_do_not_shift_the_later_ones() -> None:
    four = info("a", band_count=4, band_names=tuple("abcd"), colorinterp=("gray",) * 4)
    plan = planned([four], [info("b")])
    assert (plan.extract_bands, plan.after_bands) == ([0, 1], [0, 1])


def test_each_date_is_compared_with_its_own_statistics() -> None:
    stats = {
        "band_min_values": [0, 0, 0, 0],
        "band_max_values": [255, 255, 4000, 4000],
        "band_mean_values": [100, 100, 2000, 2000],
        "band_std_values": [40, 40, 600, 600],
        "scaled_mean_values": [0.4, 0.4, 0.5, 0.5],
        "scaled_std_values": [0.15, 0.15, 0.15, 0.15],
    }
    pack = package(NormalizationStats=stats)
    samples = [
        RasterSample((BandSample(low, high, mean, std),) * 2, 1.0, 0.0)
        for low, high, mean, std in ((5, 250, 100, 40), (100, 3900, 2000, 600))
    ]
    parameters = DetectChangeParameters.model_validate(
        {"from_raster": ["a"], "to_raster": ["b"], "model": "m", "output_classified_raster": "changes"}
    )
    rasters = [info("early")], [info("late", dtype="uint16")]
    bands = bands_of_pair(parameters, pack, None, *rasters, samples)
    assert bands[2].remarks == []


def test_a_single_pixel_in_common_is_computed() -> None:
    one = info("one", width=1, height=1)
    plan = planned([info("a")], [one])
    assert plan.grids[0].region == (0, 0, 1, 1)
    assert [shard.window for shard in plan.shards] == [(0, 0, 1, 1)]


def test_classify_pixels_refuses_a_package_for_pairs() -> None:
    values = {"input_raster": ["a"], "model": "m", "output_classified_raster": "o"}
    with pytest.raises(BadInputError, match="Use detect_change"):
        make_plan(
            ClassifyPixelsParameters.model_validate(values),
            rasters=[info("a")],
            package=package(),
            package_uri="m",
            description=FunctionDescription(
                scalars={},
                geometry=GEOMETRY,
                extract_bands=[0, 1],
                output_dtype="int32",
                output_nodata=None,
                fields=[],
            ),
            processor="CPU",
        )
