"""Raster labels on the imagery's grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyogrio
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import BadInputError, LabelError, NotFoundError, RasterError
from tasks.imagery import Grid, RasterInfo, Window
from tasks.labels import raster as module
from tasks.labels.raster import is_raster_labels, open_raster_labels, raster_classes
from tasks.labels.schema import ClassSchema

Writer = Callable[..., str]
CORNER = (500_000.0, 5_000_000.0)
RNG = np.random.default_rng(3)


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes class values (rows, cols), or several bands of them, as a GeoTIFF of half a metre."""

    def _write(
        values: Any,
        name: str = "labels.tif",
        *,
        at: tuple[float, float] = (0, 0),
        cell: float = 0.5,
        crs: str | None = "EPSG:32612",
        **profile: Any,
    ) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        bands = values if values.ndim == 3 else values[None]
        with rasterio.open(
            path, "w", **{"driver": "GTiff", "tiled": True, "blockxsize": 16, "blockysize": 16, **profile},
            count=len(bands), height=bands.shape[1], width=bands.shape[2], dtype=bands.dtype, crs=crs,
            transform=Affine(cell, 0, CORNER[0] + at[1] * 0.5, 0, -cell, CORNER[1] - at[0] * 0.5),
        ) as dataset:  # fmt: skip
            dataset.write(bands)
        return str(path)

    return _write


def grid(rows: int, cols: int, crs: str = "EPSG:32612") -> Grid:
    """A grid of half a metre."""
    wkt = rasterio.crs.CRS.from_user_input(crs).to_wkt()
    return Grid(wkt, (0.5, 0.0, CORNER[0], 0.0, -0.5, CORNER[1]), rows, cols)


def some(shape: tuple[int, int], dtype: str = "uint8", classes: int = 5) -> Any:
    return RNG.integers(0, classes, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
def test_pixels_come_back_as_they_are_in_any_window(write: Writer, dtype: str) -> None:
    values = some((50, 60), dtype)
    with open_raster_labels([write(values)], grid(50, 60)) as labels:
        assert labels.schema.values == (1, 2, 3, 4)
        assert labels.schema.names == ("1", "2", "3", "4")
        assert labels.dtype == np.uint8
        found = labels.read(Window(-3, -4, 60, 70))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found[3:53, 4:64], values)
        found[3:53, 4:64] = 0
        assert not found.any()
        np.testing.assert_array_equal(labels.read(Window(7, 9, 21, 33)), values[7:28, 9:42])


def test_large_class_values_keep_their_size(write: Writer) -> None:
    values = np.array([[0, 70_000], [300, 2**31 + 5]], dtype=np.uint32)
    with open_raster_labels([write(values)], grid(2, 2)) as labels:
        assert labels.schema.values == (300, 70_000, 2**31 + 5)
        assert labels.read(Window(0, 0, 2, 2)).tolist() == values.tolist()


def test_a_coarser_raster_gives_its_nearest_pixel(write: Writer) -> None:
    values = some((20, 30))
    coarse = write(values, cell=1.5)
    with open_raster_labels([coarse], grid(60, 90)) as labels:
        expected = np.kron(values, np.ones((3, 3), dtype=np.uint8))
        np.testing.assert_array_equal(labels.read(Window(0, 0, 60, 90)), expected)


def test_a_raster_in_another_system_brings_no_new_values(write: Writer) -> None:
    values = np.zeros((40, 40), dtype=np.uint8)
    values[10:30, 10:30] = 9
    values[:10] = 4
    target = grid(40, 40, "EPSG:32613")
    source = write(values, crs="EPSG:32613")
    with rasterio.open(source) as dataset:
        from rasterio.warp import calculate_default_transform, reproject

        transform, cols, rows = calculate_default_transform(
            dataset.crs, "EPSG:4326", dataset.width, dataset.height, *dataset.bounds
        )
        moved = np.zeros((rows, cols), dtype=np.uint8)
        reproject(
            values,
            moved,
            src_transform=dataset.transform,
            src_crs=dataset.crs,
            dst_transform=transform,
            dst_crs="EPSG:4326",
        )
    path = source.replace("labels", "degrees")
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=1,
        height=rows,
        width=cols,
        dtype="uint8",
        crs="EPSG:4326",
        transform=transform,
    ) as dataset:
        dataset.write(moved, 1)
    with open_raster_labels([path], target) as labels:
        found = labels.read(target.window)
    assert set(np.unique(found)) <= {0, 4, 9}
    assert (found == values).mean() > 0.9
    assert (found[13:27, 13:27] == 9).all()


def test_the_first_raster_with_data_wins(write: Writer) -> None:
    first, second = some((30, 30)), some((30, 30))
    first[0, 10] = 0
    first[5, 5:12] = 200
    one = write(first, "a.tif", nodata=200)
    two = write(second, "b.tif", at=(0, 10))
    with open_raster_labels([one, two], grid(30, 40)) as labels:
        found = labels.read(Window(0, 0, 30, 40))
        assert labels.uris == (one, two)
    expected = np.zeros((30, 40), dtype=np.uint8)
    expected[:, 10:] = second
    # A 0 that is not declared as nodata is "no label" and covers what lies below.
    np.copyto(expected[:, :30], first, where=first != 200)
    expected[5, 5:10] = 0
    np.testing.assert_array_equal(found, expected)
    assert found[0, 10] == 0


def test_folders_and_patterns_name_rasters(write: Writer, tmp_path: Path) -> None:
    values = some((10, 20))
    write(values[:, :10], "all/a.tif")
    write(values[:, 10:], "all/b.tif", at=(0, 10))
    for name in (str(tmp_path / "all"), str(tmp_path / "all" / "*.tif")):
        with open_raster_labels([name], grid(10, 20)) as labels:
            np.testing.assert_array_equal(labels.read(Window(0, 0, 10, 20)), values)


def test_masked_pixels_are_no_label(write: Writer) -> None:
    values = some((30, 30)) + 1
    uri = write(values)
    mask = RNG.random((30, 30)) > 0.3
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(uri, "r+") as dataset:
        dataset.write_mask(mask)
    with open_raster_labels([uri], grid(30, 30)) as labels:
        np.testing.assert_array_equal(labels.read(Window(0, 0, 30, 30)), np.where(mask, values, 0))


def test_nodata_and_nan_are_no_label(write: Writer) -> None:
    values = some((20, 20), "float32") + 1
    holes = RNG.random((20, 20)) > 0.5
    with_nan = np.where(holes, np.nan, values).astype("float32")
    for uri in (
        write(np.where(holes, -9999, values).astype("float32"), nodata=-9999),
        write(with_nan, "nan.tif"),
    ):
        with open_raster_labels([uri], grid(20, 20)) as labels:
            assert min(labels.schema.values) > 0
            np.testing.assert_array_equal(labels.read(Window(0, 0, 20, 20)), np.where(holes, 0, values))


def test_a_palette_gives_the_colours_of_the_values_that_occur(write: Writer) -> None:
    uri = write(np.array([[0, 3], [9, 9]], dtype=np.uint8))
    with rasterio.open(uri, "r+") as dataset:
        dataset.write_colormap(1, {3: (1, 2, 3), 4: (7, 7, 7), 9: (4, 5, 6)})
    assert [(item.value, item.color) for item in raster_classes([uri])] == [(3, (1, 2, 3)), (9, (4, 5, 6))]


def table(uri: str, **columns: Any) -> None:
    pyogrio.write_dataframe(pandas.DataFrame(columns), uri + ".vat.dbf", driver="ESRI Shapefile")


def test_a_field_of_the_table_reclassifies_the_pixels(write: Writer) -> None:
    values = some((20, 20))
    uri = write(values)
    table(uri, Value=[0, 1, 2, 3, 4], Kind=[5, 300, 300, 0, 7])
    with open_raster_labels([uri], grid(20, 20), classvalue_field="kind") as labels:
        assert labels.schema.values == (5, 7, 300)
        expected = np.array([5, 300, 300, 0, 7])[values]
        found = labels.read(Window(0, 0, 20, 25))
    np.testing.assert_array_equal(found[:, :20], expected)
    # Beyond the raster there is no label, though the pixel value 0 is a class.
    assert not found[:, 20:].any()


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_a_table_may_give_negative_pixels_a_class(write: Writer, dtype: str) -> None:
    uri = write(np.array([[-1, 2], [-128, 0]], dtype=dtype))
    table(uri, Value=[-1, 2, -128], Kind=[3, 4, 5])
    with open_raster_labels([uri], grid(2, 2), classvalue_field="kind") as labels:
        assert labels.read(Window(0, 0, 2, 2)).tolist() == [[3, 4], [5, 0]]


@pytest.mark.parametrize(("dtype", "most"), [("uint8", 255), ("uint16", 65_535), ("uint32", 2**32 - 1)])
def test_the_largest_value_of_a_type_is_a_class_like_any_other(write: Writer, dtype: str, most: int) -> None:
    uri = write(np.array([[most, 1], [0, 2]], dtype=dtype))
    for schema in (None, ClassSchema.from_values({1: "a", 2: "b", most: "c"})):
        with open_raster_labels([uri], grid(2, 2), schema=schema) as labels:
            assert labels.read(Window(0, 0, 2, 2)).tolist() == [[most, 1], [0, 2]]
            assert labels.dtype == dtype
    with (
        open_raster_labels([uri], grid(2, 2), schema=ClassSchema.from_values({1: "a", most: "c"})) as labels,
        pytest.raises(LabelError, match="pixel values 2, which"),
    ):
        labels.read(Window(0, 0, 2, 2))


def test_a_given_schema_decides_what_is_a_class(write: Writer) -> None:
    values = some((20, 20), classes=4)
    uri = write(values)
    table(uri, Value=[1, 2, 3], Class_name=["a", "b", "c"])
    schema = ClassSchema.from_values({1: "one", 2: "two", 3: "three", 8: "eight"})
    with open_raster_labels([uri], grid(20, 20), schema=schema) as labels:
        assert labels.schema is schema
        np.testing.assert_array_equal(labels.read(Window(0, 0, 20, 20)), values)


def test_a_given_schema_goes_before_the_table(write: Writer) -> None:
    uri = write(np.array([[1, 2]], dtype=np.uint8))
    table(uri, Value=[1], Class_name=["only one"])
    schema = ClassSchema.from_values({1: "one", 2: "two"})
    with open_raster_labels([uri], grid(1, 2), schema=schema) as labels:
        assert labels.read(Window(0, 0, 1, 2)).tolist() == [[1, 2]]


def test_values_outside_of_the_schema_are_named(write: Writer) -> None:
    values = np.zeros((20, 40), dtype=np.uint8)
    values[3, 3:5], values[:, 20:] = 1, [6, 9] * 10
    uri = write(values)
    with open_raster_labels([uri], grid(20, 40), schema=ClassSchema.from_values({1: "a"})) as labels:
        assert labels.read(Window(0, 0, 20, 20)).sum() == 2
        with pytest.raises(LabelError, match=r"labels\.tif holds the pixel values 6, 9, which are not among"):
            labels.read(Window(0, 0, 20, 40))


def test_values_outside_of_the_table_are_named(write: Writer) -> None:
    uri = write(np.array([[1, 2], [3, 0]], dtype=np.uint8))
    table(uri, Value=[1, 2], Class_name=["a", "b"])
    with (
        open_raster_labels([uri], grid(2, 2)) as labels,
        pytest.raises(LabelError, match="holds the pixel values 3, which"),
    ):
        labels.read(Window(0, 0, 2, 2))


def test_a_table_and_a_schema_go_together(write: Writer) -> None:
    uri = write(np.array([[1, 2], [3, 0]], dtype=np.uint8))
    table(uri, Value=[1, 2, 3], Kind=[7, 8, 7])
    schema = ClassSchema.from_values({7: "seven"})
    with open_raster_labels([uri], grid(2, 2), schema=schema, classvalue_field="Kind") as labels:
        assert labels.read(Window(0, 0, 1, 1)).tolist() == [[7]]
        with pytest.raises(LabelError, match="pixel values 2, which"):
            labels.read(Window(0, 0, 2, 2))


@pytest.mark.parametrize("given", [None, ClassSchema.from_values({1: "a"})])
@pytest.mark.parametrize(
    ("pixel", "says"),
    [(-3, "negative values -3"), (1.5, "1.5, which is no whole number"), (np.inf, "inf, which")],
)
def test_pixels_that_are_no_class_are_refused(
    write: Writer, pixel: float, says: str, given: ClassSchema | None
) -> None:
    values = np.ones((4, 4), dtype=np.float32 if pixel != -3 else np.int16)
    values[2, 2] = pixel
    uri = write(values)
    with pytest.raises(LabelError, match=says), open_raster_labels([uri], grid(4, 4), schema=given) as labels:
        labels.read(Window(0, 0, 4, 4))


def test_a_raster_of_measurements_is_refused(write: Writer) -> None:
    values = np.arange(300 * 300, dtype=np.uint32).reshape(300, 300)
    with pytest.raises(LabelError, match="more than 65535 distinct values"):
        raster_classes([write(values)])


@pytest.mark.parametrize("values", [np.zeros((4, 4), np.uint8), np.full((4, 4), 7, np.uint8)])
def test_a_raster_without_classes_is_refused(write: Writer, values: Any) -> None:
    with pytest.raises(LabelError, match="holds no class"):
        raster_classes([write(values, nodata=7)])


def test_several_bands_are_refused_but_for_alpha(write: Writer) -> None:
    values = np.stack([some((8, 8)), np.full((8, 8), 255, np.uint8)])
    with pytest.raises(LabelError, match=r"has 2 bands.*"):
        raster_classes([write(values, photometric="minisblack", alpha="no")])
    with_alpha = write(values, "alpha.tif", photometric="minisblack", alpha="yes")
    with open_raster_labels([with_alpha], grid(8, 8)) as labels:
        np.testing.assert_array_equal(labels.read(Window(0, 0, 8, 8)), values[0])


def test_rasters_that_contradict_each_other_are_refused(write: Writer) -> None:
    one, two = write(some((8, 8)), "a.tif"), write(some((8, 8)), "b.tif")
    table(one, Value=[1, 2, 3, 4], Kind=[1, 2, 3, 4], Name=["w", "x", "y", "z"])
    table(two, Value=[1, 2, 3, 4], Kind=[1, 3, 3, 4], Name=["w", "y", "y", "Z"])
    with pytest.raises(LabelError, match=r"pixel value 2 is class 2 in .*a\.tif.* and class 3 in .*b\.tif"):
        raster_classes([one, two], classvalue_field="kind")
    table(two, Value=[1, 2, 3, 4], Name=["w", "x", "y", "Z"])
    with pytest.raises(LabelError, match=r"class value 4 is 'z' in .*a\.tif.* and 'Z' in .*b\.tif"):
        raster_classes([one, two])


def test_a_raster_without_names_takes_those_of_the_others(write: Writer) -> None:
    one, two = write(some((8, 8), classes=3), "a.tif"), write(np.full((8, 8), 4, np.uint8), "b.tif")
    table(one, Value=[1, 2], Name=["w", "x"])
    assert raster_classes([one, two]).names == ("w", "x", "4")


def test_pixels_are_not_read_where_something_else_names_the_classes(write: Writer) -> None:
    uri = write(some((64, 64)), compress="deflate")
    table(uri, Value=[1, 2, 3, 4], Name=["w", "x", "y", "z"])
    data = Path(uri).read_bytes()
    Path(uri).write_bytes(data[: len(data) // 2])  # the header is whole, the last blocks are gone
    assert len(raster_classes([uri])) == 4
    given = ClassSchema.from_values({1: "a"})
    Path(uri + ".vat.dbf").unlink()
    with open_raster_labels([uri], grid(64, 64), schema=given) as labels:
        assert labels.schema is given
    with pytest.raises(RasterError):
        raster_classes([uri])


def test_identity_knows_the_table(write: Writer) -> None:
    uri = write(some((8, 8)))
    identities = set()
    for names in (None, ["w", "x", "y", "z"], ["w", "x", "y", "Z"]):
        if names:
            table(uri, Value=[1, 2, 3, 4], Name=names)
        with open_raster_labels([uri], grid(8, 8)) as labels:
            identities.add(labels.identity)
    assert len(identities) == 3


def test_in_pixel_space_labels_lie_pixel_on_pixel(write: Writer) -> None:
    values = some((12, 15))
    pixel_space = Grid(None, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), 12, 15)
    for uri in (write(values), write(values, "plain.tif", crs=None)):
        with open_raster_labels([uri], pixel_space) as labels:
            np.testing.assert_array_equal(labels.read(Window(2, 3, 10, 12)), values[2:, 3:])
    with pytest.raises(LabelError, match="has 15 x 11 pixels, the imagery has 15 x 12"):
        open_raster_labels([write(values[:11])], pixel_space)


def test_a_raster_without_a_reference_system_is_refused_on_a_map(write: Writer) -> None:
    with pytest.raises(BadInputError, match="no reference system"):
        open_raster_labels([write(some((8, 8)), crs=None)], grid(8, 8))


def test_a_missing_raster_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="gone"):
        open_raster_labels([str(tmp_path / "gone.tif")], grid(8, 8))


def test_what_is_a_raster(write: Writer, tmp_path: Path) -> None:
    (tmp_path / "a.gdb").mkdir()
    (tmp_path / "a.gpkg").write_bytes(b"")
    (tmp_path / "labels.txt").write_text("no raster")
    Path(write(some((8, 8)), "plain")).rename(tmp_path / "raster_without_ending")
    answers = {
        "s3://bucket/labels.TIF": True,
        "s3://bucket/labels/": True,
        "s3://bucket/labels/*.tif": True,
        "s3://bucket/labels.gdb/": False,
        "s3://bucket/labels.gpkg|layername=trees.tif": False,
        str(tmp_path): True,
        str(tmp_path / "a.gdb"): False,
        str(tmp_path / "a.gpkg"): False,
        str(tmp_path / "labels.txt"): False,
        str(tmp_path / "missing"): False,
        str(tmp_path / "raster_without_ending"): True,
    }
    assert {name: is_raster_labels(name) for name in answers} == answers


@given(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.tuples(st.sampled_from([1, 16, 64, 256, 1024]), st.sampled_from([16, 64, 256, 1024, 4000])),
)
def test_the_pass_over_a_raster_meets_every_pixel_once(size: tuple[int, int], block: tuple[int, int]) -> None:
    # What is read at a time has whole blocks and a bounded number of pixels, whatever the raster's size.
    info = RasterInfo(
        uri="x", width=size[1], height=size[0], band_count=1, dtype="uint8", nodata=None, crs_wkt=None,
        transform=(1, 0, 0, 0, -1, 0), block_shape=block, band_names=("a",), colorinterp=("gray",),
        identity="",
    )  # fmt: skip
    limit = 100_000
    pieces = list(module.pieces(info, limit))
    assert sum(piece.rows * piece.cols for piece in pieces) == size[0] * size[1]
    assert len(set(pieces)) == len(pieces)
    assert all(grid_of(info).window.contains(piece) for piece in pieces)
    assert all(
        piece.row % min(block[0], size[0]) == 0 and piece.col % min(block[1], size[1]) == 0
        for piece in pieces
    )
    assert max(piece.rows * piece.cols for piece in pieces) <= max(
        limit, min(block[0], size[0]) * min(block[1], size[1])
    )


def grid_of(info: Any) -> Grid:
    return Grid(None, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), info.height, info.width)


def test_the_schema_of_a_raster_travels_as_json(write: Writer) -> None:
    schema = raster_classes([write(some((8, 8)))])
    again = ClassSchema.from_records(json.loads(json.dumps(schema.to_records())))
    assert again == schema
