"""Planning: bad input is refused with one clear message before any pixel is read; keys and numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from pydantic import ValidationError

from tasks.errors import BadInputError, ChiplineError, LabelError, NotFoundError
from tasks.export import addresses, inputs, plan, sources
from tasks.export.parameters import ExportParameters
from tasks.imagery import GridReader
from tasks.store import ObjectStore

MakeScene = Callable[..., Any]
Export = Callable[..., Any]


def _plan(scene: Any, **values: Any) -> plan.ExportPlan:
    parameters = ExportParameters(
        **{
            "input_raster": [scene.raster],
            "input_class_data": scene.labels,
            "output_location": "chips",
            "tile_size": 64,
            **values,
        }
    )
    return plan.plan_in_force(ObjectStore(), parameters, inputs.inspect_inputs(parameters))


@pytest.fixture(autouse=True)
def _no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning reads no pixels: doing so is an error here."""

    def read(*_: Any) -> None:
        raise AssertionError("planning read pixels")

    monkeypatch.setattr(GridReader, "read", read)


def test_a_missing_raster(make_scene: MakeScene) -> None:
    scene = make_scene()
    with pytest.raises(NotFoundError, match=r"missing\.tif"):
        _plan(scene, input_raster=[scene.raster.replace("scene", "missing")])


def test_missing_labels(make_scene: MakeScene) -> None:
    scene = make_scene()
    with pytest.raises(NotFoundError, match=r"missing\.gpkg"):
        _plan(scene, input_class_data=scene.labels.replace("scene", "missing"))


def test_a_raster_without_crs(make_scene: MakeScene) -> None:
    with pytest.raises(BadInputError, match=r"no coordinate reference system.*gdal_edit"):
        _plan(make_scene(crs=None))


def test_labels_that_do_not_touch_the_raster(make_scene: MakeScene) -> None:
    near = make_scene()
    far = make_scene(name="far", transform=rasterio.transform.from_origin(600_000, 5_100_000, 0.5, 0.5))
    with pytest.raises(LabelError, match=r"do not touch the imagery \(labels .*600.*imagery .*500000"):
        _plan(near, input_class_data=far.labels)
    with pytest.raises(LabelError, match="do not touch"):
        _plan(near, input_class_data=far.labels, output_nofeature_tiles="ALL_TILES")


def test_an_unknown_class_field(make_scene: MakeScene) -> None:
    with pytest.raises(LabelError, match=r"no field 'species'.*classvalue, classname"):
        _plan(make_scene(), classvalue_field="species")


def test_no_features(make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene()
    empty = tmp_path / "empty.gpkg"
    scene.frame.iloc[:0].to_file(empty, engine="pyogrio")
    with pytest.raises(LabelError, match="no features"):
        _plan(scene, input_class_data=str(empty))


def test_a_ratio_that_leaves_nothing(make_scene: MakeScene) -> None:
    with pytest.raises(LabelError, match=r"min_polygon_overlap_ratio 1\.0"):
        _plan(make_scene(), tile_size=16, stride_size=16, min_polygon_overlap_ratio=1.0)


@pytest.mark.parametrize("chip_format", ["PNG", "JPEG"])
def test_a_chip_format_that_cannot_hold_the_imagery(make_scene: MakeScene, chip_format: str) -> None:
    with pytest.raises(BadInputError, match="Set chip_format to TIFF"):
        _plan(make_scene(dtype="float32"), chip_format=chip_format)


def test_rasters_of_different_kinds(make_scene: MakeScene) -> None:
    first, second = make_scene(name="first"), make_scene(name="second", bands=1)
    with pytest.raises(BadInputError, match=r"has 3 bands, but .*second.tif has 1"):
        _plan(first, input_raster=[first.raster, second.raster])
    wide = make_scene(name="wide", dtype="uint16")
    made = _plan(first, input_raster=[first.raster, wide.raster])
    assert made.items[0].bands.dtype == "uint16"
    assert "uint16, uint8" in made.notes[0]


def test_inputs_outside_the_allowed_roots(make_scene: MakeScene) -> None:
    scene = make_scene()
    for values in ({"input_raster": ["/etc/passwd"]}, {"input_class_data": "/etc/passwd"}):
        with pytest.raises(ChiplineError, match="outside the allowed folders"):
            _plan(scene, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"tile_size": 8},
        {"stride_size": 0},
        {"min_polygon_overlap_ratio": 1.5},
        {"metadata_format": "KITTI"},
        {"extent": [1, 2, 3]},
        {"extent": [3, 2, 1, 4]},
        {"input_raster": []},
        {"buffer_radius": -1},
        {"tile": 256},
    ],
)
def test_parameters_out_of_bounds(values: dict[str, Any]) -> None:
    good = {"input_raster": ["a.tif"], "input_class_data": "a.gpkg", "output_location": "x"}
    with pytest.raises(ValidationError):
        ExportParameters(**{**good, **values})


def test_an_alpha_band_is_no_picture(make_scene: MakeScene) -> None:
    scene = make_scene(bands=4, photometric="RGB", alpha="YES")
    assert _plan(scene, chip_format="PNG").items[0].bands.indices == (0, 1, 2)


def test_labels_in_another_crs_give_the_same_chips(make_scene: MakeScene) -> None:
    here = _plan(make_scene())
    there = _plan(make_scene(name="degrees", labels_crs="EPSG:4326"))
    assert [part.chips for part in there.parts] == [part.chips for part in here.parts]
    assert there.labels["source_crs"] == "EPSG:4326"


def test_the_extent_bounds_the_chips_on_the_raster_s_own_grid(make_scene: MakeScene) -> None:
    scene = make_scene()
    made = _plan(scene, extent=[500_010.1, 4_999_950, 500_070, 4_999_990.2])
    grid = made.items[0].target()
    assert grid.transform == (0.5, 0.0, 500_010.0, 0.0, -0.5, 4_999_990.5)
    assert (grid.rows, grid.cols) == (81, 120)


def test_the_run_key_follows_the_content(make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene()
    key = _plan(scene).run_key
    assert _plan(scene, output_location="other", chips_per_part=1).run_key == key
    assert _plan(scene, stride_size=63).run_key != key
    changed = tmp_path / "changed.gpkg"
    frame: geopandas.GeoDataFrame = scene.frame.iloc[1:]
    frame.to_file(changed, engine="pyogrio")
    assert _plan(scene, input_class_data=str(changed)).run_key != key
    with rasterio.open(scene.raster, "r+") as dataset:
        dataset.write(np.ascontiguousarray(scene.pixels[:, ::-1]))
    assert _plan(scene).run_key != key


def test_what_gives_access_to_imagery_stays_out_of_what_stays(make_scene: MakeScene) -> None:
    store = ObjectStore()
    made = _plan(make_scene(), output_location="secret")
    address = "https://user:word@tiles.example/{z}/{x}/{y}.png?style=a&token=hidden"
    item = made.items[0]
    made = made.model_copy(
        update={
            "parameters": made.parameters.model_copy(update={"input_raster": [address]}),
            "items": [item.model_copy(update={"rasters": [{**item.rasters[0], "uri": address}]})],
        }
    )
    uri = plan.save_plan(store, made)
    assert plan.load_plan(store, uri) == made
    kept = store.get(uri).decode()
    assert "https://tiles.example/{z}/{x}/{y}.png?style=a" in kept
    assert "hidden" not in kept
    assert "word@" not in kept
    # The end of the run takes it away, and another run of today brings its own.
    addresses.remove_access(store, made.folder_uri)
    assert plan.load_plan(store, uri) != made
    assert plan.load_plan(store, uri, today=made.parameters) == made


def test_parts_end_between_rows_of_blocks(make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(rows=512)
    monkeypatch.setattr(sources.ItemSources, "piece", lambda _: (96, 512))
    # Seven chips to a lane, three lanes to a row of pieces.
    lanes = {}
    for wanted in (30, 36, 22):
        parts = _plan(
            scene,
            output_location=f"parts-of-{wanted}",
            chips_per_part=wanted,
            tile_size=32,
            stride_size=32,
            output_nofeature_tiles="ALL_TILES",
        ).parts
        lanes[wanted] = [len(part.firsts) for part in parts]
    # One lane more than asked for is fine; a quarter more chips is not.
    assert lanes == {30: [6, 6, 4], 36: [6, 6, 4], 22: [4, 4, 4, 4]}


def test_parts_hold_their_share_of_dense_numbers(make_scene: MakeScene) -> None:
    scene = make_scene()
    whole = _plan(scene, stride_size=16)
    parts = _plan(scene, stride_size=16, chips_per_part=7, output_location="parts").parts
    # A part ends with the lane that fills it.
    assert all(part.chips >= 7 for part in parts[:-1])
    assert len(parts) > len(whole.parts)
    assert sum(part.chips for part in parts) == whole.chips
    number, lane = 0, 0
    for part in parts:
        assert (part.firsts[0], part.lane) == (number, lane)
        number, lane = number + part.chips, part.lanes.stop


def test_a_plan_survives_the_store(make_scene: MakeScene) -> None:
    made = _plan(make_scene(), chips_per_part=2)
    store = ObjectStore()
    assert plan.load_plan(store, plan.save_plan(store, made)) == made


def test_the_extent_leaves_items_out(make_scene: MakeScene) -> None:
    first, far = (
        make_scene(name="first"),
        make_scene(name="far", transform=rasterio.transform.from_origin(600_000, 5_100_000, 0.5, 0.5)),
    )
    both = {"input_raster": [first.raster, far.raster], "processing_mode": "PROCESS_ITEMS_SEPARATELY"}
    made = _plan(first, **both, extent=[500_010, 4_999_950, 500_070, 4_999_990])
    assert [item.rasters[0]["uri"] for item in made.items] == [first.raster]
    with pytest.raises(BadInputError, match="touches none of the 2 rasters"):
        _plan(first, **both, extent=[0, 0, 1, 1])
