from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from rasterio.features import rasterize

from tasks.assess.parameters import AccuracyParameters
from tasks.assess.run import KIND, AccuracyResult, compute
from tasks.errors import BadInputError, LabelError, NotFoundError
from tasks.parameters import validated
from tasks.store import ObjectStore, current, iter_files, join, read_manifest

Write = Callable[..., str]

X, Y = 500_000.0, 4_000_000.0  # a corner of the world
IMAGE = np.ones((3, 100, 100), np.uint8)


def box(x: float, y: float, width: float = 10, height: float = 10) -> tuple[float, float, float, float]:
    return (X + x, Y + y, X + x + width, Y + y + height)


def run(**values: Any) -> AccuracyResult:
    values = {"out_accuracy_table": "acc", "bootstrap_replicates": 50, **values}
    return compute(ObjectStore(), validated(AccuracyParameters, values))


def row_of(result: AccuracyResult, name: str, kind: str = "objects") -> dict[str, Any]:
    return next(row for row in result.rows if row["Class"] == name and row["Kind"] == kind)


@pytest.fixture
def scene(write_layer: Write, write_raster: Write) -> dict[str, Any]:
    """Two classes on 100 m of ground; one tree is cut by the edge, one lies far outside."""
    truth = write_layer(
        "truth.gpkg",
        [box(0, 0), box(20, 0), box(40, 0), box(60, 60), box(93, 40), box(300, 0)],
        classvalue=[1, 1, 1, 2, 1, 1],
        classname=["Tree", "Tree", "Tree", "Roof", "Tree", "Tree"],
    )
    return {
        "ground_truth_features": truth,
        "extent_rasters": [write_raster("image.tif", IMAGE, X, Y + 100)],
    }


def test_objects_by_name_inside_the_footprint(scene: dict[str, Any], write_layer: Write) -> None:
    found = write_layer(
        "found.parquet",
        [box(0, 0), box(20, 0, 10, 6), box(60, 60), box(80, 80), box(300, 0), box(93, 40, 7)],
        Class=["Tree", "Tree", "Roof", "Roof", "Tree", "Tree"],
        Confidence=[90.0, 80.0, 95.0, 20.0, 99.0, 70.0],
    )
    result = run(detected_features=[found], **scene)
    tree, roof, every = (row_of(result, name) for name in ("Tree", "Roof", "All"))
    # The tree at 93 has its centre inside (98) and is clipped to what can be seen; the one at 300 is far.
    assert [tree[k] for k in ("True_Positive", "False_Positive", "False_Negative")] == [3, 0, 1]
    assert [roof[k] for k in ("True_Positive", "False_Positive", "False_Negative")] == [1, 1, 0]
    assert (tree["AP"], roof["AP"], every["AP"]) == (0.75, 1.0, 0.875)
    assert (every["Precision"], every["Recall"]) == (0.8, 0.8)
    assert every["F1_Score_Low"] <= every["F1_Score"] <= every["F1_Score_High"]
    assert tree["Class_Value"] == 1


def test_an_object_beyond_the_edge_is_neither_missed_nor_wrong(
    write_layer: Write, write_raster: Write
) -> None:
    # Its centre lies outside of the image, of which 4 m show; the detector found these 4 m.
    truth = write_layer("t.gpkg", [box(96, 40), box(0, 0)], classvalue=[1, 1])
    found = write_layer("d.gpkg", [box(96, 40, 4), box(0, 0)], Confidence=[0.9, 0.8])
    image = write_raster("image.tif", IMAGE, X, Y + 100)
    result = run(ground_truth_features=truth, detected_features=[found], extent_rasters=[image])
    every = row_of(result, "All")
    assert (every["True_Positive"], every["False_Positive"], every["False_Negative"]) == (1, 0, 0)
    missed = run(
        ground_truth_features=truth,
        detected_features=[write_layer("one.gpkg", [box(0, 0)], Confidence=[0.8])],
        extent_rasters=[image],
    )
    assert row_of(missed, "All")["False_Negative"] == 0


def test_every_truth_is_assessed_once_where_rasters_overlap(write_layer: Write, write_raster: Write) -> None:
    truth = write_layer("t.gpkg", [box(60, 40), box(95, 10), box(150, 40)], classvalue=[1, 1, 1])
    found = write_layer("d.gpkg", [box(60, 40), box(95, 10), box(150, 40), box(60, 80)])
    images = [write_raster(f"{i}.tif", IMAGE, X + i * 50, Y + 100) for i in range(3)]
    result = run(ground_truth_features=truth, detected_features=[found], extent_rasters=images)
    every = row_of(result, "All")
    assert (every["True_Positive"], every["False_Positive"], every["False_Negative"]) == (3, 1, 0)


def test_other_coordinate_systems_give_the_same(scene: dict[str, Any], write_layer: Write) -> None:
    boxes = [box(0, 0), box(21, 0), box(60, 61)]
    fields = {"Class": ["Tree", "Tree", "Roof"], "Confidence": [0.9, 0.8, 0.7]}
    here = run(detected_features=[write_layer("a.gpkg", boxes, **fields)], **scene)
    away = run(detected_features=[write_layer("b.gpkg", boxes, to_crs="EPSG:4326", **fields)], **scene)
    assert here.folder_uri != away.folder_uri
    assert here.rows == away.rows


def test_no_extent_assesses_everything(scene: dict[str, Any], write_layer: Write) -> None:
    found = write_layer("d.gpkg", [box(0, 0), box(300, 0)], Classvalue=[1, 1])
    result = run(ground_truth_features=scene["ground_truth_features"], detected_features=[found])
    every = row_of(result, "All")
    assert (every["True_Positive"], every["False_Positive"], every["False_Negative"]) == (2, 0, 4)


@pytest.mark.parametrize(("rule", "hits", "misses"), [("INTERSECTS", 1, 1), ("WITHIN", 1, 0)])
def test_the_mask_bounds_truth_and_detections(
    scene: dict[str, Any], write_layer: Write, rule: str, hits: int, misses: int
) -> None:
    # The mask holds the first tree whole and touches the second; the detection at 60 is outside of it.
    found = write_layer("d.gpkg", [box(0, 0), box(60, 0)], Class=["Tree", "Tree"])
    mask = write_layer("m.gpkg", [(X - 1, Y - 1, X + 25, Y + 11)])
    result = run(detected_features=[found], mask_features=mask, mask_rule=rule, **scene)
    every = row_of(result, "All")
    assert (every["True_Positive"], every["False_Positive"], every["False_Negative"]) == (hits, 0, misses)


def test_nothing_detected(scene: dict[str, Any], write_layer: Write) -> None:
    result = run(detected_features=[write_layer("none.parquet", [], Class=[], Confidence=[])], **scene)
    every = row_of(result, "All")
    assert (every["Precision"], every["Recall"], every["F1_Score"], every["AP"]) == (None, 0, 0, 0)
    page = ObjectStore().get(join(result.folder_uri, "report.html")).decode()
    assert "not defined" in page


def test_unknown_confidences_are_the_least(scene: dict[str, Any], write_layer: Write) -> None:
    found = write_layer(
        "d.gpkg", [box(0, 0), box(80, 80)], Class=["Tree", "Tree"], Confidence=[math.nan, 0.1]
    )
    assert row_of(run(detected_features=[found], **scene), "Tree")["AP"] == pytest.approx(0.25 * 0.5)


def test_what_cannot_be_scored_says_why(
    scene: dict[str, Any], write_layer: Write, write_raster: Write
) -> None:
    found = write_layer("d.gpkg", [box(0, 0)], Class=["Tree"])
    with pytest.raises(LabelError, match=r"no field 'Kind'.*Use one of: Class"):
        run(detected_features=[found], detected_class_value_field="Kind", **scene)
    strange = write_layer("e.gpkg", [box(0, 0)], Class=["Ship"])
    with pytest.raises(BadInputError, match=r"Ship.*1 Tree, 2 Roof.*detected_class_value_field"):
        run(detected_features=[strange], **scene)
    with pytest.raises(NotFoundError, match=r"none\.gpkg"):
        run(detected_features=[found.replace("d.gpkg", "none.gpkg")], **scene)
    with pytest.raises(BadInputError, match="give detected_features, classified_raster or both"):
        run(**scene)
    with pytest.raises(BadInputError, match="outside the allowed"):
        run(detected_features=["/etc/x.gpkg"], **scene)
    unplaced = write_raster("unplaced.tif", IMAGE, 0, 0, crs=None)
    with pytest.raises(BadInputError, match="no coordinate reference system"):
        run(detected_features=[found], **{**scene, "extent_rasters": [unplaced]})
    far = write_raster("far.tif", IMAGE, X + 5000, Y)
    with pytest.raises(BadInputError, match="Neither a true nor a detected object"):
        run(detected_features=[found], **{**scene, "extent_rasters": [far]})
    assert not list(ObjectStore().list(str(Path(found).parent / "root") + "/"))


def test_a_published_folder_of_detections_is_read_once_per_layer(
    scene: dict[str, Any], write_layer: Write, world: Path
) -> None:
    write_layer("out/k/trees.gpkg", [box(0, 0)], Class=["Tree"])
    write_layer("out/k/trees.parquet", [box(0, 0)], Class=["Tree"])
    write_layer("out/older/trees.parquet", [box(50, 50)], Class=["Tree"])
    newest = str(world / "out" / "k")
    ObjectStore().put(f"{world}/out/current.json", json.dumps({"folder": newest, "number": 2}).encode())
    for folder in (newest, f"{world}/out/"):
        tree = row_of(run(detected_features=[folder], **scene), "Tree")
        assert (tree["True_Positive"], tree["False_Positive"]) == (1, 0)


def test_the_same_again_is_not_computed_again(scene: dict[str, Any], write_layer: Write) -> None:
    found = write_layer("d.gpkg", [box(0, 0), box(80, 80)], Class=["Tree", "Roof"])
    store = ObjectStore()
    first = run(detected_features=[found], **scene)
    manifest = read_manifest(store, first.folder_uri)
    assert manifest is not None
    assert sorted(record.path for record in iter_files(store, first.folder_uri)) == [
        "accuracy.csv",
        "accuracy.json",
        "report.html",
    ]
    again = run(detected_features=[found], **scene)
    assert (again.already_done, again.folder_uri, again.rows) == (True, first.folder_uri, first.rows)
    assert read_manifest(store, first.folder_uri) == manifest
    assert current(store, KIND, "acc") == first.folder_uri
    other = run(detected_features=[found], min_iou=0.3, **scene)
    assert other.folder_uri != first.folder_uri
    assert current(store, KIND, "acc") == other.folder_uri


def test_the_files_hold_the_same_numbers(scene: dict[str, Any], write_layer: Write) -> None:
    found = write_layer("d.gpkg", [box(0, 0), box(80, 80)], Class=["Tree", "<b>Roof</b>"])
    result = run(detected_features=[found], **scene)
    store = ObjectStore()
    table = list(csv.DictReader(io.StringIO(store.get(join(result.folder_uri, "accuracy.csv")).decode())))
    data = json.loads(store.get(join(result.folder_uri, "accuracy.json")))
    assert data["rows"] == result.rows
    assert [row["Class"] for row in table] == [row["Class"] for row in result.rows]
    for line, row in zip(table, result.rows, strict=True):
        for name in ("Precision", "Recall", "F1_Score", "AP", "True_Positive"):
            assert line[name] == ("" if row[name] is None else str(row[name]))
    page = store.get(join(result.folder_uri, "report.html")).decode()
    assert "<b>Roof" not in page
    assert "&lt;b&gt;Roof" in page


@pytest.mark.parametrize("nodata", [0, 255, None])
def test_pixels_against_an_independent_count(
    write_layer: Write, write_raster: Write, nodata: int | None
) -> None:
    random = np.random.default_rng(7)
    boxes = [box(*random.uniform(0, 140, 2), *random.uniform(3, 20, 2)) for _ in range(40)]
    values = random.integers(1, 3, 40)
    truth = write_layer("t.gpkg", boxes, classvalue=values)
    shapes = [(shapely.box(*b), int(v)) for b, v in zip(boxes, values, strict=True)]
    from affine import Affine

    burnt = rasterize(shapes, (150, 150), transform=Affine(1, 0, X, 0, -1, Y + 150), dtype="uint8")
    predicted = np.where(random.random((150, 150)) < 0.2, random.integers(0, 3, (150, 150)), burnt).astype(
        np.uint8
    )
    valid = np.ones((150, 150), bool)
    if nodata == 255:
        predicted[:, :30] = 255
        valid[:, :30] = False
    raster = write_raster("c.tif", predicted, X, Y + 150, nodata=nodata)
    # The imagery covers the upper 100 rows only.
    image = write_raster("i.tif", np.ones((2, 100, 150), np.uint8), X, Y + 150)
    result = run(ground_truth_features=truth, classified_raster=[raster], extent_rasters=[image])
    valid[100:] = False
    matrix = np.array(
        [[int(((burnt == t) & (predicted == p) & valid).sum()) for p in range(3)] for t in range(3)]
    )
    assert result.details["pixels"]["confusion_matrix"] == matrix.tolist()
    assert row_of(result, "1", "pixels")["IoU"] == pytest.approx(
        matrix[1, 1] / (matrix[1].sum() + matrix[:, 1].sum() - matrix[1, 1]), abs=1e-6
    )
    every = row_of(result, "All", "pixels")
    assert every["Overall_Accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum(), abs=1e-6)
    assert every["IoU_Low"] < every["IoU"] < every["IoU_High"]
    assert every["IoU"] == pytest.approx(
        np.mean([row_of(result, name, "pixels")["IoU"] for name in ("1", "2")]), abs=1e-6
    )


def test_pixels_in_blocks_count_every_pixel_once(write_layer: Write, write_raster: Write) -> None:
    truth = write_layer("t.gpkg", [box(0, 0, 700, 900)], classvalue=[1])
    raster = write_raster("c.tif", np.ones((1301, 1703), np.uint8), X, Y + 1301)
    totals = set()
    for size in (70.0, 333.0, 5000.0):
        result = run(ground_truth_features=truth, classified_raster=[raster], block_size=size)
        totals.add(str(result.details["pixels"]["confusion_matrix"]))
    assert totals == {str([[0, 1301 * 1703 - 700 * 900], [0, 700 * 900]])}


def test_pixels_that_cannot_be_scored(write_layer: Write, write_raster: Write) -> None:
    truth = write_layer("t.gpkg", [box(0, 0)], classvalue=[1])
    floats = write_raster("f.tif", np.ones((50, 50), np.float32), X, Y + 50)
    with pytest.raises(BadInputError, match="float32 values, no classes"):
        run(ground_truth_features=truth, classified_raster=[floats])
    classes = write_raster("c.tif", np.ones((50, 50), np.uint8), X, Y + 50)
    far = write_raster("far.tif", IMAGE, X + 5000, Y)
    with pytest.raises(BadInputError, match="No pixel"):
        run(ground_truth_features=truth, classified_raster=[classes], extent_rasters=[far])


def test_objects_and_pixels_in_one_table(
    scene: dict[str, Any], write_layer: Write, write_raster: Write
) -> None:
    found = write_layer("d.gpkg", [box(0, 0)], Class=["Tree"])
    raster = write_raster("out/c.tif", np.ones((100, 100), np.uint8), X, Y + 100, nodata=0)
    result = run(detected_features=[found], classified_raster=[str(Path(raster).parent)], **scene)
    kinds = [(row["Kind"], row["Class"]) for row in result.rows]
    assert kinds == [
        ("objects", "Tree"),
        ("objects", "Roof"),
        ("objects", "All"),
        ("pixels", "background"),
        ("pixels", "Tree"),
        ("pixels", "Roof"),
        ("pixels", "All"),
    ]


def test_the_picture_shows_hits_and_misses(scene: dict[str, Any], write_layer: Write) -> None:
    from PIL import Image

    from tasks.assess.picture import picture_of

    found = write_layer("d.gpkg", [box(20, 0)], Class=["Tree"])
    result = run(detected_features=[found], **scene)
    assert result.objects is not None
    data = picture_of(result.objects.areas[0], result.extents[0])
    assert len(data) < 200_000
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert picture.shape == (100, 100, 3)
    # The missed tree at the lower left is outlined in red, the found one beside it in green or blue.
    missed, hit = picture[93, 10], picture[93, 30]
    assert missed[0] > missed[1] + 60
    assert hit[0] < max(hit[1], hit[2])


def test_further_overlaps_have_rows_of_their_own(scene: dict[str, Any], write_layer: Write) -> None:
    found = write_layer("d.gpkg", [box(0, 0), box(20, 0, 10, 6), box(61, 60)], Class=["Tree", "Tree", "Roof"])
    result = run(detected_features=[found], further_iou=[0.25, 0.75, 0.5], **scene)
    alone = run(detected_features=[found], min_iou=0.75, **scene)
    every = [row for row in result.rows if row["Class"] == "All"]
    assert [(row["Min_IoU"], row["True_Positive"]) for row in every] == [(0.5, 3), (0.25, 3), (0.75, 2)]
    # The row of an IoU is the one that a run with this IoU has, but for COCO's number, which is of all.
    strict = [row for row in result.rows if row["Min_IoU"] == 0.75]
    assert strict == [{k: v for k, v in row.items() if k != "COCO_mAP"} for row in alone.rows]
    assert row_of(result, "All")["COCO_mAP"] == row_of(alone, "All")["COCO_mAP"]
    # The roof of IoU 9 / 11 is found at seven of COCO's ten steps.
    assert row_of(result, "Roof")["COCO_mAP"] == pytest.approx(0.7)
    page = ObjectStore().get(join(result.folder_uri, "report.html")).decode()
    assert "IoU of at least 0.75" in page
    with pytest.raises(BadInputError, match="further_iou"):
        run(detected_features=[found], further_iou=[1.5], **scene)


def test_confusions_and_calibration_are_in_the_details(scene: dict[str, Any], write_layer: Write) -> None:
    found = write_layer(
        "d.gpkg",
        [box(0, 0), box(20, 0), box(60, 60), box(80, 80)],
        Class=["Tree", "Roof", "Roof", "Tree"],
        Confidence=[95.0, 85.0, 75.0, 65.0],
    )
    details = run(detected_features=[found], **scene).details["objects"]
    assert details["classes"] == ["Tree", "Roof"]
    # A tree taken for a roof, two trees missed, a tree where nothing is.
    assert details["confusion_matrix"] == [[1, 1, 2], [0, 1, 0], [1, 0, 0]]
    assert [item["confidence"] for item in details["reliability"]] == pytest.approx([0.65, 0.75, 0.85, 0.95])
    assert details["calibration_error"] == pytest.approx((0.65 + 0.25 + 0.85 + 0.05) / 4)


def test_the_report_as_pdf(scene: dict[str, Any], write_layer: Write, write_raster: Write) -> None:
    found = write_layer("d.gpkg", [box(0, 0), box(80, 80)], Class=["Tree", "Roof"], Confidence=[0.9, 0.4])
    raster = write_raster("c.tif", np.ones((100, 100), np.uint8), X, Y + 100, nodata=0)
    values = {"detected_features": [found], "classified_raster": [raster], "further_iou": [0.3], **scene}
    store = ObjectStore()
    pages = store.get(join(run(**values, out_accuracy_report="HTML_AND_PDF").folder_uri, "report.pdf"))
    assert pages.startswith(b"%PDF-")
    # Tables of two IoUs, curves, confusions, calibration, pixels and their confusions, parameters.
    assert b"/Count 8" in pages
    assert b"CreationDate" not in pages
    assert not store.exists(join(run(**values).folder_uri, "report.pdf"))


def test_the_mask_bounds_pixels(write_layer: Write, write_raster: Write) -> None:
    truth = write_layer("t.gpkg", [box(0, 0, 50, 100)], classvalue=[1])
    raster = write_raster("c.tif", np.ones((100, 100), np.uint8), X, Y + 100)
    mask = write_layer("m.gpkg", [box(40, 0, 30, 20), box(45, 10, 10, 20)])
    result = run(ground_truth_features=truth, classified_raster=[raster], mask_features=mask)
    inside = 30 * 20 + 10 * 20 - 10 * 10
    right = 10 * 20 + 5 * 10  # of the mask, what lies on the truth: 40 to 50, and 45 to 50 above it
    assert result.details["pixels"]["confusion_matrix"] == [[0, inside - right], [0, right]]
