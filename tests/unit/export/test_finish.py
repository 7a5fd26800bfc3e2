"""A finished export: complete, listed in its manifest, pointed at, and done only once."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tasks.errors import RunError
from tasks.export import cut, finish, inputs, plan, preview, task
from tasks.export.parameters import ExportParameters
from tasks.store import ObjectStore, current, iter_files, read_manifest, sync_folder
from tasks.training_data import open_training_data

MakeScene = Callable[..., Any]
Export = Callable[..., Any]


@pytest.mark.parametrize("metadata_format", ["Classified_Tiles", "PASCAL_VOC_rectangles"])
def test_the_folder_is_complete_and_listed(
    make_scene: MakeScene, export: Export, tmp_path: Path, metadata_format: str
) -> None:
    done = export(make_scene(), metadata_format=metadata_format, chips_per_part=5)
    listed = {record.path for record in iter_files(ObjectStore(), done.plan.folder_uri)}
    assert listed == set(done.files())
    suffix = ".tif" if metadata_format == "Classified_Tiles" else ".xml"
    lines = (done.folder / "map.txt").read_bytes().decode().split("\r\n")
    assert lines.pop() == ""
    assert lines == [f"images\\{n:09d}.tif  labels\\{n:09d}{suffix} " for n in range(done.plan.chips)]
    for name in ("stats.txt", "esri_accumulated_stats.json", "esri_model_definition.emd"):
        assert (done.folder / name).is_file()
    copy = open_training_data(sync_folder(ObjectStore(), done.plan.folder_uri, tmp_path / "copy"))
    assert len(copy.chips) == done.plan.chips == done.manifest.details["chips"]


def test_the_statistics_count_what_the_chips_hold(make_scene: MakeScene, export: Export) -> None:
    from tasks.training_data import read_boxes, read_class_mask

    tiles = export(make_scene(), metadata_format="Classified_Tiles", chips_per_part=4)
    stats = json.loads((tiles.folder / "esri_accumulated_stats.json").read_text())["ClassPixelStats"]
    masks = [read_class_mask(chip) for chip in tiles.data.chips]
    for index, value in enumerate(tiles.data.classes.values):
        counts = [int((mask == value).sum()) for mask in masks]
        assert stats["NumPixelsPerClass"][index] == sum(counts)
        assert stats["NumImagesPerClass"][index] == sum(count > 0 for count in counts)
        assert stats["PixelsPerClass"][index]["Min"] == min(counts)
        assert stats["PixelsPerClass"][index]["Count"] == len(masks)
    rectangles = export(make_scene(), output_location="boxes", chips_per_part=4)
    stats = json.loads((rectangles.folder / "esri_accumulated_stats.json").read_text())["FeatureStats"]
    boxes = [read_boxes(chip) for chip in rectangles.data.chips]
    assert stats["NumFeaturesTotal"] == sum(len(one) for one in boxes)
    assert stats["NumFeaturesPerImage"]["Max"] == max(len(one) for one in boxes)
    for index, value in enumerate(rectangles.data.classes.values):
        assert stats["NumFeaturesPerClass"][index] == sum(box[0] == value for one in boxes for box in one)


def test_the_name_points_at_the_newest_export(make_scene: MakeScene, export: Export) -> None:
    first = export(make_scene())
    assert current(ObjectStore(), inputs.KIND, "chips") == first.plan.folder_uri
    second = export(make_scene(), stride_size=50)
    assert current(ObjectStore(), inputs.KIND, "chips") == second.plan.folder_uri != first.plan.folder_uri


def test_a_second_run_changes_nothing_and_says_so(make_scene: MakeScene, export: Export) -> None:
    done = export(make_scene())
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*") if path.is_file()}
    again = finish.finish(ObjectStore(), done.plan, {"other": "run"})
    assert again.already_done
    assert again.manifest == done.manifest
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_export_into_a_folder_of_the_caller(make_scene: MakeScene, export: Export, tmp_path: Path) -> None:
    done = export(make_scene(), output_location=str(tmp_path / "mine"))
    assert done.folder.parent == tmp_path / "mine"
    assert done.manifest.name == "mine"


def test_nothing_is_visible_before_every_part_is_done(make_scene: MakeScene) -> None:
    scene = make_scene()
    parameters = ExportParameters(
        input_raster=[scene.raster],
        input_class_data=scene.labels,
        output_location="chips",
        tile_size=64,
        chips_per_part=2,
    )
    store = ObjectStore()
    made = plan.plan_in_force(store, parameters, inputs.inspect_inputs(parameters))
    plan_uri = plan.save_plan(store, made)
    cut.cut_part(store, made, 1)
    assert task.is_part_done(plan_uri, 1)
    assert not task.is_part_done(plan_uri, 0)
    with pytest.raises(RunError, match="Part 1 of"):
        finish.finish(store, made, {})
    assert read_manifest(store, made.folder_uri) is None
    assert current(store, inputs.KIND, "chips") is None


@pytest.mark.parametrize("metadata_format", ["Classified_Tiles", "PASCAL_VOC_rectangles"])
@pytest.mark.parametrize(("bands", "dtype"), [(3, "uint8"), (5, "uint16"), (1, "float32")])
def test_the_contact_sheet_is_a_small_picture(
    make_scene: MakeScene, export: Export, metadata_format: str, bands: int, dtype: str
) -> None:
    done = export(make_scene(bands=bands, dtype=dtype), metadata_format=metadata_format, stride_size=20)
    sheet = preview.contact_sheet(ObjectStore(), done.plan)
    assert len(sheet) <= preview.MAX_BYTES
    picture = Image.open(io.BytesIO(sheet))
    assert picture.size == (4 * 196 - 4, 3 * 196 - 4)


def test_the_tables_of_the_run_s_page(make_scene: MakeScene, export: Export) -> None:
    done = export(make_scene())
    rows = task.outputs_table(ObjectStore(), done.plan, done.manifest)
    assert rows[0]["link"] == done.plan.folder_uri
    assert all("[open](" in row["link"] for row in rows[1:])
    classes = task.class_table(done.manifest)
    assert [row["class"] for row in classes] == ["Tree", "Bush", "Rock"]
    assert sum(float(row["share"].rstrip(" %")) for row in classes) == pytest.approx(100, abs=0.2)
