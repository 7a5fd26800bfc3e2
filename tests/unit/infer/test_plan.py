"""Planning: grids, shards, keys and parts; bad input is refused here."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from tasks.errors import BadInputError, DeviceError, NotFoundError
from tasks.imagery import RasterInfo, Window, inspect_raster
from tasks.infer import plan as planning
from tasks.infer.describe import FunctionDescription
from tasks.infer.fit import separately
from tasks.infer.mask import MaskPolygons
from tasks.infer.parameters import ClassifyPixelsParameters, DetectObjectsParameters
from tasks.infer.plan import check_addresses, choose_processor, inspect_collection, make_plan
from tasks.infer.planned import Plan
from tasks.infer.shards import TileGeometry, split_parts, tiles_per_shard
from tasks.package import ModelDefinition, Package
from tasks.parameters import validated
from tasks.settings import settings

GEOMETRY = TileGeometry(rows=128, cols=128, padding=32)


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
    settings.cache_clear()
    yield
    settings.cache_clear()


def package(model_type: str = "ImageClassification", **more: Any) -> Package:
    definition = ModelDefinition.model_validate(
        {
            "ModelType": model_type,
            "Classes": [{"Value": 1, "Name": "Tree", "Color": [0, 128, 0]}],
            "ImageHeight": 192,
            "ImageWidth": 192,
            **more,
        }
    )
    return Package(folder=Path("/nowhere"), definition=definition, digest="d1", name="trees")


def description(**more: Any) -> FunctionDescription:
    values: dict[str, Any] = {
        "scalars": {"padding": 32, "batch_size": 1},
        "geometry": GEOMETRY,
        "extract_bands": [0, 1, 2],
        "output_dtype": "int32",
        "output_nodata": None,
        "fields": ["FID", "Class", "Confidence"],
        **more,
    }
    return FunctionDescription(**values)


def info(
    name: str = "west", *, at: tuple[int, int] = (0, 0), shape: tuple[int, int] = (1000, 700), **more: Any
) -> RasterInfo:
    """A raster of ``shape`` whose first pixel lies ``at`` (row, col) of a common grid."""
    values: dict[str, Any] = {
        "uri": f"s3://imagery/{name}.tif",
        "width": shape[1],
        "height": shape[0],
        "band_count": 3,
        "dtype": "uint8",
        "nodata": None,
        "crs_wkt": rasterio.crs.CRS.from_epsg(32612).to_wkt(),
        "transform": (0.1, 0.0, 500_000.0 + 0.1 * at[1], 0.0, -0.1, 4_900_000.0 - 0.1 * at[0]),
        "block_shape": (512, 512),
        "band_names": ("Red", "Green", "Blue"),
        "colorinterp": ("red", "green", "blue"),
        "identity": f"identity of {name}",
        **more,
    }
    return RasterInfo(**values)


def classify(**more: Any) -> ClassifyPixelsParameters:
    values = {"input_raster": ["s3://imagery/"], "model": "s3://m.dlpk", "output_classified_raster": "trees"}
    return ClassifyPixelsParameters.model_validate({**values, **more})


def plan(
    *rasters: RasterInfo,
    processor: Any = "CPU",
    pack: Any = None,
    says: Any = None,
    mask: Any = None,
    snap: Any = None,
    **more: Any,
) -> Plan:
    parameters = classify(**more)
    return make_plan(
        parameters,
        rasters=rasters or [info()],
        package=pack or package(),
        package_uri="s3://m.dlpk",
        description=says or description(),
        processor=processor,
        mask=mask,
        snap=snap,
    )


def test_shards_cover_the_raster_without_overlap_and_parts_cover_the_shards() -> None:
    made = plan(info(shape=(3000, 5000)), shard_size=1000, shards_per_part=4)
    seen = np.zeros((3000, 5000), np.uint8)
    for shard in made.shards:
        seen[shard.target.slices_in(Window(0, 0, 3000, 5000))] += 1
    assert seen.min() == seen.max() == 1
    assert [shard for start, stop in made.parts for shard in made.shards[start:stop]] == made.shards
    assert max(stop - start for start, stop in made.parts) <= 4
    assert [(shard.row, shard.col) for shard in made.shards] == sorted((s.row, s.col) for s in made.shards)
    # 8 x 128 = 1024 is both nearest to 1000 and a whole number of the file's blocks of 512.
    assert {shard.target.shape for shard in made.shards[:4]} == {(1024, 1024)}


def test_a_mosaic_plans_shards_only_where_footprints_lie() -> None:
    far = info("far", at=(40_000, 40_000))
    made = plan(info(), far, shard_size=1000)
    # 1000 x 700 pixels lie in one shard of 1024; the far raster's place crosses shard borders.
    assert [(s.row, s.col) for s in made.shards] == [(0, 0), (39, 39), (40, 39)]
    assert made.grids[0].rows == 41_000


def test_the_key_of_a_shard_tells_all_that_decides_its_pixels() -> None:
    rasters = [info("a", shape=(2048, 2048)), info("b", at=(0, 2048), shape=(2048, 2048))]
    base = plan(*rasters, shard_size=1024)
    keys = [shard.key for shard in base.shards]
    assert len(set(keys)) == len(keys) == 8
    others = {
        "package": plan(
            *rasters, shard_size=1024, pack=Package(Path("/nowhere"), package().definition, "d2", "trees")
        ),
        "arguments": plan(
            *rasters, shard_size=1024, says=description(scalars={"padding": 32, "batch_size": 4})
        ),
        "device": plan(*rasters, shard_size=1024, processor="GPU"),
        "cell size": plan(*rasters, shard_size=1024, cell_size=0.2),
        "shard size": plan(*rasters, shard_size=2048),
        "bands": plan(*rasters, shard_size=1024, says=description(extract_bands=[2, 1, 0])),
        "geometry": plan(
            *rasters, shard_size=1024, says=description(geometry=GEOMETRY.model_copy(update={"padding": 31}))
        ),
    }
    for name, other in others.items():
        assert not set(keys) & {shard.key for shard in other.shards}, name
        assert other.run_key != base.run_key, name


def test_only_shards_that_a_changed_raster_touches_get_another_key() -> None:
    rasters = [info("a", shape=(2048, 2048)), info("b", at=(0, 2048), shape=(2048, 2048))]
    changed = [rasters[0], rasters[1].model_copy(update={"identity": "new"})]
    before, after = plan(*rasters, shard_size=1024), plan(*changed, shard_size=1024)
    differ = [one.key != other.key for one, other in zip(before.shards, after.shards, strict=True)]
    # The second column of shards lies within a's half, and its halo reaches into b.
    assert differ == [False, True, True, True] * 2
    assert before.run_key != after.run_key


def test_semantics_version_and_finishing_parameters_change_the_run_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = plan()
    monkeypatch.setattr(planning, "SEMANTICS_VERSION", 99)
    assert plan().shards[0].key != base.shards[0].key
    monkeypatch.undo()
    assert plan(output_classified_raster="other").run_key != base.run_key
    assert plan(shards_per_part=1, model_arguments=[]).run_key == base.run_key

    def objects(**more: Any) -> Plan:
        values = {
            "input_raster": ["s3://imagery/"],
            "model": "s3://m.dlpk",
            "output_objects": "trees",
            **more,
        }
        return make_plan(
            DetectObjectsParameters.model_validate(values),
            rasters=[info()],
            package=package("ObjectDetection"),
            package_uri="s3://m.dlpk",
            description=description(),
            processor="CPU",
        )

    plain, suppressed = objects(), objects(run_nms=True)
    assert plain.shards == suppressed.shards
    assert plain.run_key != suppressed.run_key
    with pytest.raises(BadInputError, match=r"no field 'Score'.*Confidence"):
        objects(run_nms=True, confidence_score_field="Score")
    # What NMS would do with these is decided only where it runs.
    assert objects(max_overlap_ratio=0.3).run_key == plain.run_key


def test_separate_items_have_grids_and_names_of_their_own() -> None:
    elsewhere = info("sub/west", crs_wkt=rasterio.crs.CRS.from_epsg(26912).to_wkt())
    made = plan(info("west"), elsewhere, processing_mode="PROCESS_ITEMS_SEPARATELY")
    assert [grid.name for grid in made.grids] == ["west", "west_2"]
    assert [grid.rasters for grid in made.grids] == [[0], [1]]
    assert {shard.grid for shard in made.shards} == {0, 1}
    with pytest.raises(BadInputError, match="out_sr"):
        plan(info("west"), elsewhere)
    assert plan(info("west"), elsewhere, out_sr=32612).grids[0].rasters == [0, 1]


def test_an_extent_keeps_the_tiles_where_they_are() -> None:
    whole = plan(info(shape=(2000, 2000)), shard_size=500)
    part = plan(info(shape=(2000, 2000)), shard_size=500, extent=[500_060, 4_899_880, 500_100, 4_899_930])
    assert part.grids[0].region == (700, 600, 500, 400)
    assert (part.grids[0].rows, part.grids[0].transform) == (whole.grids[0].rows, whole.grids[0].transform)
    places = {(s.row, s.col) for s in part.shards}
    assert places < {(s.row, s.col) for s in whole.shards}
    assert part.grids[0].output_grid.bounds == pytest.approx((500_060, 4_899_880, 500_100, 4_899_930))
    with pytest.raises(BadInputError, match="does not touch"):
        plan(extent=[0, 0, 1, 1])


def test_a_plan_survives_being_written_and_read() -> None:
    made = plan(says=description(output_dtype="float32"), shard_size=500)
    again = Plan.model_validate_json(made.model_dump_json())
    assert again.model_dump_json() == made.model_dump_json()
    assert again.pixel_format is not None
    assert np.isnan(again.pixel_format.nodata)


def test_planning_a_hundred_thousand_pixels_squared_takes_no_time() -> None:
    started = time.perf_counter()
    made = plan(info(shape=(100_000, 100_000)))
    text = made.model_dump_json()
    assert time.perf_counter() - started < 2.0
    assert 2000 < len(made.shards) < 3000
    assert len(text) < 2_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"says": description(extract_bands=[0, 3])}, "takes the bands 1, 4, and .* has 3"),
        ({"says": description(extract_bands=["NIR"])}, "band 'NIR', and .* has Red, Green, Blue"),
        ({"pack": package("ObjectDetection")}, "Use detect_objects"),
        ({"pack": package("ImageCaptioner")}, "No tool applies"),
        ({"pack": package(Classes=[])}, "lists no classes"),
    ],
)
def test_a_package_that_does_not_fit_is_refused(change: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        plan(**change)


def test_signatures_of_addresses_do_not_go_on_record() -> None:
    signed = "https://example.org/west.tif?X-Amz-Signature=secret"
    made = plan(info(uri=signed), input_raster=[signed], snap_raster=signed)
    assert made.parameters["snap_raster"] == "https://example.org/west.tif"
    assert made.rasters[0].uri == signed  # what is read
    assert made.parameters["input_raster"] == ["https://example.org/west.tif"]
    assert made.grids[0].name == "trees"
    assert (
        plan(info(uri=signed.replace("secret", "other")), input_raster=[signed], snap_raster=signed).run_key
        == made.run_key
    )


def test_bands_are_found_by_name() -> None:
    assert plan(says=description(extract_bands=["blue", 0])).extract_bands == [2, 0]


def test_a_raster_without_crs_is_refused() -> None:
    with pytest.raises(BadInputError, match="no coordinate reference system"):
        plan(info(crs_wkt=None))


def test_an_output_beyond_the_stated_size_is_refused() -> None:
    with pytest.raises(BadInputError, match="larger cell_size"):
        plan(info(shape=(1000, 1000)), cell_size=1e-5)


def test_what_fits_badly_is_remarked_once_and_what_cannot_fit_is_refused() -> None:
    def trained_at(size: float) -> Package:
        cell = {"x": size, "y": size, "spatialReference": {"wkid": 32612}}
        return package(MinCellSize=cell, MaxCellSize=cell)

    remarks = plan(info("a"), info("b", at=(0, 700)), pack=trained_at(0.5)).remarks
    assert len(remarks) == 1
    assert "trained on 0.5 m" in remarks[0]
    assert not plan(pack=trained_at(0.1)).remarks
    assert not plan(pack=trained_at(0.5), cell_size=0.5).remarks
    with pytest.raises(BadInputError, match="trained on 30 m"):
        plan(pack=trained_at(30))


def test_rasters_with_bands_in_another_order_are_read_by_name() -> None:
    named = package(ExtractBands=[0, 1, 2], Bands=["Red", "Green", "Blue"])
    turned = info("turned", band_names=("Blue", "Green", "Red"))
    assert plan(turned, pack=named).extract_bands == [2, 1, 0]
    with pytest.raises(BadInputError, match="another order"):
        plan(info(), turned, pack=named)


def test_a_gpu_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "visible_gpus", list)
    assert choose_processor("AUTO") == choose_processor("CPU") == choose_processor("CPU", "GPU") == "CPU"
    with pytest.raises(DeviceError, match="no GPU"):
        choose_processor("GPU")
    assert choose_processor("GPU", "GPU") == choose_processor("AUTO", "GPU") == "GPU"
    monkeypatch.setattr(planning, "visible_gpus", lambda: ["a GPU"])
    assert choose_processor("AUTO") == choose_processor("GPU") == "GPU"
    assert choose_processor("AUTO", "CPU") == "CPU"


def test_a_missing_raster_and_a_text_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"missing\.tif"):
        inspect_collection([str(tmp_path / "missing.tif")])
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(OSError, match=r"text\.tif"):
        inspect_collection([str(tmp_path / "text.tif")])


def test_rasters_are_inspected_in_the_collections_order(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{name}.tif") for name in "dacb"]
    for place, name in enumerate(names):
        transform = Affine(1, 0, place, 0, -1, 100)
        with rasterio.open(
            name, "w", driver="GTiff", height=4, width=4, count=1, dtype="uint8", transform=transform
        ) as dataset:
            dataset.write(np.ones((1, 4, 4), np.uint8))
    assert [one.uri for one in inspect_collection(names)] == names
    assert inspect_raster(names[0]).transform[2] == 0


@pytest.mark.parametrize(
    "change",
    [{"input_raster": ["/etc/passwd"]}, {"model": "/etc/x.dlpk"}, {"output_classified_raster": "/etc/o"}],
)
def test_addresses_outside_of_the_allowed_roots_are_refused(tmp_path: Path, change: Any) -> None:
    allowed = {"input_raster": [str(tmp_path / "a.tif")], "model": str(tmp_path / "m.dlpk")}
    check_addresses(classify(**allowed))
    with pytest.raises(BadInputError, match="allowed"):
        check_addresses(classify(**{**allowed, **change}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extent": [0, 0, 1]}, "extent"),
        ({"extent": [2, 0, 1, 1]}, "extent"),
        ({"cell_size": 0}, "cell_size"),
        ({"input_raster": []}, "input_raster"),
        ({"processor_type": "TPU"}, "processor_type"),
        ({"run_nms": True}, "run_nms"),  # a parameter of the other tool
    ],
)
def test_wrong_parameters_are_named(values: dict[str, Any], message: str) -> None:
    given = {"input_raster": ["a"], "model": "m", "output_classified_raster": "o", **values}
    with pytest.raises(BadInputError, match=message):
        validated(ClassifyPixelsParameters, given)


@pytest.mark.parametrize(
    ("step", "block", "target", "expected"),
    [
        (128, 512, 2048, 16),
        (100, 512, 2048, 21),
        (192, 256, 2048, 12),
        (5000, 256, 2048, 1),
        (128, 10_000, 2048, 16),
    ],
)
def test_shard_edges_come_near_block_borders(step: int, block: int, target: int, expected: int) -> None:
    count = tiles_per_shard(step, block, target)
    if expected == 21:  # no count fits exactly; 2048/100 = 20.48, and the best lies within a quarter of it
        rests = [min(n * step % block, block - n * step % block) for n in range(16, 26)]
        assert min(count * step % block, block - count * step % block) == min(rests)
    else:
        assert count == expected


@pytest.mark.parametrize(("count", "per_part"), [(0, 4), (1, 4), (4, 4), (5, 4), (17, 4), (2401, 16)])
def test_parts_are_even_and_contiguous(count: int, per_part: int) -> None:
    parts = split_parts(count, per_part)
    assert [number for start, stop in parts for number in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in parts]
    assert not sizes or (max(sizes) <= per_part and max(sizes) - min(sizes) <= 1)


def test_of_candidate_items_only_those_are_taken_and_dates_travel(tmp_path: Path) -> None:
    features = []
    for number, name in enumerate("abc"):
        path = tmp_path / f"{name}.tif"
        with rasterio.open(path, "w", driver="GTiff", height=4, width=4, count=1, dtype="uint8") as dataset:
            dataset.write(np.ones((1, 4, 4), np.uint8))
        assets = {"data": {"href": f"./{name}.tif", "roles": ["data"]}}
        properties = {"Candidate": number, "datetime": f"2026-0{number + 1}-01T00:00:00Z"}
        features.append({"type": "Feature", "id": name, "assets": assets, "properties": properties})
    document = tmp_path / "items.json"
    document.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    taken = inspect_collection([str(document)], candidates_only=True)
    assert [Path(one.uri).stem for one in taken] == ["b", "c"]
    assert [one.acquired for one in taken] == ["2026-02-01T00:00:00", "2026-03-01T00:00:00"]
    assert len(inspect_collection([str(document)])) == 3
    with pytest.raises(BadInputError, match="Candidate"):
        inspect_collection([str(tmp_path / "a.tif")], candidates_only=True)
    assert separately(classify(processing_mode="PROCESS_CANDIDATE_ITEMS_ONLY"))


def test_a_mask_bounds_the_output_and_leaves_out_shards_between_its_polygons() -> None:
    crs = rasterio.crs.CRS.from_epsg(32612).to_wkt()
    squares = [
        shapely.box(500_010, 4_899_980, 500_020, 4_899_990),
        shapely.box(500_250, 4_899_720, 500_270, 4_899_730),
    ]
    mask = MaskPolygons("m.gpkg", crs, np.array(squares, dtype=object))
    whole, masked = (plan(info(shape=(3000, 3000)), shard_size=500, mask=item) for item in (None, mask))
    assert masked.grids[0].region == (100, 100, 2700, 2600)
    assert masked.grids[0].transform == whole.grids[0].transform
    assert [(s.row, s.col) for s in masked.shards] == [(0, 0), (5, 4), (5, 5)]
    assert not {shard.key for shard in masked.shards} & {shard.key for shard in whole.shards}
    assert masked.mask == mask.digest
    far = MaskPolygons("far.gpkg", crs, shapely.box([0.0], [0.0], [1.0], [1.0]))
    with pytest.raises(BadInputError, match=r"far\.gpkg does not touch"):
        plan(mask=far)
    # Of separate items those that it does not touch are left out.
    east = info("east", at=(0, 20_000))
    apart = plan(info(), east, mask=mask, processing_mode="PROCESS_ITEMS_SEPARATELY")
    assert [grid.name for grid in apart.grids] == ["west"]


def test_cells_are_aligned_to_a_snap_raster() -> None:
    crs = rasterio.crs.CRS.from_epsg(32612).to_wkt()
    snap = info("snap", transform=(10.0, 0.0, 499_000.03, 0.0, -10.0, 4_950_000.07), crs_wkt=crs)
    made = plan(snap=snap).grids[0]
    assert made.grid.cell_size == (0.1, 0.1)
    steps = np.array([made.transform[2] - 499_000.03, made.transform[5] - 4_950_000.07]) / 0.1
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    assert (made.rows, made.cols) == (1001, 701)
    elsewhere = info("snap", crs_wkt=rasterio.crs.CRS.from_epsg(4326).to_wkt())
    with pytest.raises(BadInputError, match=r"snap raster.*EPSG:4326"):
        plan(snap=elsewhere)


def test_there_are_as_many_parts_as_run_at_the_same_time() -> None:
    big = info(shape=(3000, 3000))
    cut = {"shard_size": 500, "shards_per_part": 16}
    assert len(plan(big, **cut).parts) == 3
    assert len(plan(big, **cut, parallel_processing_factor="7").parts) == 6
    assert len(plan(big, **cut, parallel_processing_factor="2").parts) == 3
    with pytest.raises(BadInputError, match="parallel_processing_factor"):
        validated(ClassifyPixelsParameters, {**classify().model_dump(), "parallel_processing_factor": "much"})
