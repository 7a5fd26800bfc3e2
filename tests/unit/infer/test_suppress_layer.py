"""Non Maximum Suppression of whole layers: fields, formats, publishing; and against torchvision."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely

from tasks.errors import BadInputError, ChiplineError
from tasks.infer import suppression
from tasks.infer.parameters_suppression import SuppressionParameters
from tasks.infer.suppress_layer import suppress_layer, suppressed
from tasks.infer.suppression import suppress
from tasks.settings import settings
from tasks.store import ObjectStore, current, join


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
    settings.cache_clear()
    yield
    settings.cache_clear()


def crowded(count: int) -> tuple[Any, Any, Any]:
    """Boxes (xmin, ymin, xmax, ymax) in heaps of twenty, distinct scores, three classes."""
    chooser = np.random.default_rng(3)
    low = np.repeat(chooser.random((count // 20, 2)) * count**0.5 * 5, 20, axis=0)
    low = low + chooser.normal(0, 3, low.shape)
    corners = np.hstack([low, low + chooser.uniform(8, 24, low.shape)])
    return corners, chooser.permutation(count) / count, chooser.integers(0, 3, count)


def layer(path: Path, **more: Any) -> geopandas.GeoDataFrame:
    """Three boxes, of which the second overlaps the first and the third is of another class."""
    columns = {"CONFIDENCE": [50, 90, 70], "Class": ["a", "a", "b"], "Größe": [1.5, None, 3.0], **more}
    boxes = [shapely.box(0, 0, 10, 10), shapely.box(2, 0, 12, 10), shapely.box(1, 0, 11, 10)]
    frame = geopandas.GeoDataFrame(columns, geometry=boxes, crs="EPSG:32612")
    frame.to_file(path)
    return frame


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7])
def test_boxes_stay_as_torchvision_keeps_them(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from torchvision.ops import batched_nms, nms

    monkeypatch.setattr(suppression, "_FIRST_RUN", 64)  # many runs
    monkeypatch.setattr(suppression, "_PAIRS_PER_RUN", 2000)
    corners, scores, classes = crowded(1500)
    boxes, values, kinds = (torch.tensor(item) for item in (corners, scores, classes))
    geometries = shapely.box(*corners.T)
    alone = suppress(geometries, scores, max_overlap_ratio=ratio)
    assert np.flatnonzero(alone).tolist() == sorted(nms(boxes, values, ratio).tolist())
    # Within classes first, and then what is left regardless of them.
    first = batched_nms(boxes, values, kinds, ratio)
    both = first[nms(boxes[first], values[first], ratio)]
    made = suppress(geometries, scores, classes, max_overlap_ratio=ratio)
    assert np.flatnonzero(made).tolist() == sorted(both.tolist())
    assert 0 < made.sum() < len(made)


def test_memory_holds_the_pairs_of_one_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    remove = suppression._remove

    def counted(stays: Any, surer: Any, weaker: Any) -> None:
        seen.append(len(surer))
        remove(stays, surer, weaker)

    monkeypatch.setattr(suppression, "_remove", counted)
    monkeypatch.setattr(suppression, "_FIRST_RUN", 32)
    monkeypatch.setattr(suppression, "_PAIRS_PER_RUN", 500)
    heap = np.full(3000, shapely.box(0, 0, 1, 1), dtype=object)  # four and a half million pairs
    stays = suppress(heap, np.arange(3000.0))
    assert stays.sum() == 1
    assert sum(seen) < 100_000


@pytest.mark.parametrize("name", ["wälder.gpkg", "a.geojson", "a.fgb"])
def test_a_layer_keeps_its_fields_and_is_published_once(tmp_path: Path, name: str) -> None:
    layer(tmp_path / name)
    store = ObjectStore()
    parameters = SuppressionParameters(
        in_features=str(tmp_path / name),
        out_features="apart",
        class_value_field="class",
        confidence_score_field="Confidence",
        max_overlap_ratio=0.9,
    )
    first = suppress_layer(store, parameters)
    assert first.details["objects"] == 3
    strict = parameters.model_copy(update={"max_overlap_ratio": 0.5, "output_formats": ["FLATGEOBUF"]})
    result = suppress_layer(store, strict, {"flow_run": "x"})
    assert not result.already_done
    assert suppress_layer(store, strict).already_done
    assert current(store, "outputs/non_maximum_suppression", "apart") == result.folder
    made = geopandas.read_parquet(join(result.folder, "apart.parquet"))
    # The second box is the surest; the third, of another class, overlaps it too.
    assert made["CONFIDENCE"].tolist() == [90]
    assert set(made.columns) >= {"CONFIDENCE", "Class", "Größe", "geometry"}
    assert made.crs.to_epsg() == 32612
    package = pyogrio.read_dataframe(join(result.folder, "apart.gpkg"))
    assert package["CONFIDENCE"].tolist() == [90]
    assert pyogrio.read_dataframe(join(result.folder, "apart.fgb"))["CONFIDENCE"].tolist() == [90]
    item = json.loads(store.get(join(result.folder, "apart.stac.json")))
    assert set(item["assets"]) == {"apart.parquet", "apart.gpkg", "apart.fgb"}
    assert [link["href"] for link in item["links"]] == [str(tmp_path / name)]
    assert item["bbox"] == pytest.approx(made.to_crs("EPSG:4326").total_bounds.tolist(), abs=1e-5)
    # What it wrote is an input again, by its folder.
    again = strict.model_copy(
        update={"in_features": join(settings().root, "outputs/non_maximum_suppression/apart")}
    )
    assert suppress_layer(store, again.model_copy(update={"out_features": "twice"})).details["objects"] == 1


def test_what_has_no_geometry_or_no_area_stays(tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame(
        {"Confidence": [1.0, 2.0, 3.0, 4.0]},
        geometry=[None, shapely.box(0, 0, 2, 2), shapely.Point(1, 1), shapely.Polygon()],
        crs="EPSG:32612",
    )
    frame.to_parquet(tmp_path / "odd.parquet")
    parameters = SuppressionParameters(in_features=str(tmp_path / "odd.parquet"), out_features="odd")
    result = suppress_layer(ObjectStore(), parameters)
    assert result.details["objects"] == 4
    assert result.details["without_geometry"] == 2
    nothing = frame.iloc[:0]
    nothing.to_parquet(tmp_path / "nothing.parquet")
    empty = parameters.model_copy(update={"in_features": str(tmp_path / "nothing.parquet")})
    assert suppress_layer(ObjectStore(), empty).details["objects"] == 0


def test_the_class_field_is_found_or_all_are_one_class(tmp_path: Path) -> None:
    parameters = SuppressionParameters(in_features="x", out_features="y", max_overlap_ratio=0.5)
    frame = layer(tmp_path / "a.gpkg")
    assert suppressed(frame, parameters).tolist() == [False, True, False]
    # In a chain of one class the middle one goes; of two classes it is compared with its own first.
    chain = frame.assign(
        CONFIDENCE=[3, 2, 1],
        Classvalue=[1, 1, 2],
        geometry=[shapely.box(0, 0, 10, 10), shapely.box(2, 0, 12, 10), shapely.box(4, 0, 14, 10)],
    )
    assert suppressed(chain, parameters).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence_score_field": "Score"}, r"no field 'Score'.*CONFIDENCE"),
        ({"class_value_field": "Kind"}, r"no field 'Kind'.*Class"),
        ({"confidence_score_field": "Class"}, "no numbers"),
        ({"confidence_score_field": "Größe"}, "1 of 3 features have no confidence"),
        ({"in_features": "{tmp}/missing.gpkg"}, r"missing\.gpkg"),
        ({"in_features": "/etc/passwd"}, "allowed"),
    ],
)
def test_bad_input_names_its_remedy(tmp_path: Path, change: dict[str, str], message: str) -> None:
    layer(tmp_path / "a.gpkg")
    values = {"in_features": str(tmp_path / "a.gpkg"), "out_features": "apart", **change}
    values["in_features"] = values["in_features"].replace("{tmp}", str(tmp_path))
    with pytest.raises(ChiplineError, match=message):
        suppress_layer(ObjectStore(), SuppressionParameters.model_validate(values))


def test_ratios_outside_their_range_are_refused() -> None:
    with pytest.raises(BadInputError, match="max_overlap_ratio"):
        suppress(np.array([shapely.box(0, 0, 1, 1)]), np.ones(1), max_overlap_ratio=1.0)
