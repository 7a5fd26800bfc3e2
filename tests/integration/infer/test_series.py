"""Time series from parameters to published dates and what changed, through the real host."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pystac
import pytest
import rasterio
import shapely

from tasks.errors import BadInputError
from tasks.infer import task
from tasks.infer.finish import finish
from tasks.infer.parameters import ClassifyPixelsParameters, DetectObjectsParameters
from tasks.infer.parameters_refine import RefineParameters
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.infer.refine import refine
from tasks.package.publish import publish_package
from tasks.store import join

CELL_M2 = 0.25 / 0.9996**2  # on the central meridian of its zone


@pytest.fixture
def applied(store: Any, tmp_path: Path) -> Any:
    """``applied(package, rasters, only_plan=False, **more)``: the plan and the published result."""

    def run(package: Any, rasters: list[str], *, only_plan: bool = False, **more: Any) -> Any:
        kind: Any = ClassifyPixelsParameters
        values: dict[str, Any] = {
            "input_raster": rasters,
            "time_series": "BY_DATE",
            "shard_size": 128,
            **more,
        }
        if package.definition.model_type == "ObjectDetection":
            kind = DetectObjectsParameters
            values.setdefault("output_objects", "found")
        else:
            values.setdefault("output_classified_raster", "classes")
        values["model"] = publish_package(store, tmp_path / f"{package.name}.dlpk", made_by="test")
        plan = prepare(kind.model_validate(values), store)
        if only_plan:
            return plan
        for part in range(len(plan.parts)):
            compute_part(store, plan, part, package=package)
        return plan, finish(store, plan, {})

    return run


def shard_keys(plan: Any) -> list[str]:
    return [shard.key for shard in plan.shards]


def table(store: Any, plan: Any, name: str) -> list[dict[str, str]]:
    text = store.get(join(plan.folder, name)).decode()
    return list(csv.DictReader(io.StringIO(text)))


def read(plan: Any, name: str) -> tuple[Any, Any]:
    with rasterio.open(join(plan.folder, name)) as dataset:
        return dataset.read(1), dataset.transform


def flat(level: int, rows: int, cols: int) -> Any:
    return np.full((3, rows, cols), level, np.uint8)


def test_dates_become_rasters_on_one_grid_with_what_changed_between_them(
    applied: Any, store: Any, classifier: Any, write_scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = flat(50, 96, 128)
    first[:, :, 64:] = 200
    second = flat(50, 96, 128)
    uris = [
        # One day in two files, which overlap; a later day that lies elsewhere, by two cells and a half.
        write_scene("a_20240701_west", first[:, :, :80]),
        write_scene("b_20240701_east", first[:, :, 70:], at=(0, 70)),
        write_scene("c_20240815", second, at=(16, 0)),
        write_scene("d_20250102", 250 - second, at=(16, 0)),
    ]
    plan, result = applied(classifier, uris[::-1], date_in_name="%Y%m%d", change_rasters=True)
    assert [planned.date for planned in plan.grids] == ["2024-07-01", "2024-08-15", "2025-01-02"]
    assert len({(planned.transform, planned.rows, planned.cols) for planned in plan.grids}) == 1
    july, where = read(plan, "classes_2024-07-01.tif")
    august, later = read(plan, "classes_2024-08-15.tif")
    january, _ = read(plan, "classes_2025-01-02.tif")
    assert (where.f, later.f) == (4_900_000, 4_900_000 - 8)
    assert july.shape == august.shape == (96, 128)

    # The oracle: the finished rasters themselves, on their common ground.
    def transitions(one: Any, other: Any) -> dict[tuple[int, int], int]:
        pairs, counts = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1, return_counts=True)
        return dict(zip(map(tuple, pairs.T.tolist()), counts.tolist(), strict=True))

    names = {1: "Dark", 2: "Bright"}
    rows = table(store, plan, "classes_changes.csv")
    for dates, one, other in (
        (("2024-07-01", "2024-08-15"), july[16:], august[:80]),
        (("2024-08-15", "2025-01-02"), august, january),
        (("2024-07-01", "2025-01-02"), july[16:], january[:80]),
    ):
        expected = {(names[a], names[b]): count for (a, b), count in transitions(one, other).items()}
        here = [row for row in rows if (row["from_date"], row["to_date"]) == dates]
        assert {(row["from_class"], row["to_class"]): int(row["pixels"]) for row in here} == expected
        for row in here:
            assert float(row["area_m2"]) == pytest.approx(int(row["pixels"]) * CELL_M2, rel=1e-5)
        code, place = read(plan, f"classes_changes_{dates[0]}_{dates[1]}.tif")
        np.testing.assert_array_equal(code, one * 10 + other)
        assert place.f == 4_900_000 - 8
    by_date = table(store, plan, "classes_dates.csv")
    bright = {row["date"]: int(row["pixels"]) for row in by_date if row["Class"] == "Bright"}
    assert bright == {"2024-07-01": (july == 2).sum(), "2024-08-15": 0, "2025-01-02": (january == 2).sum()}
    assert sum(float(row["share"]) for row in by_date) == pytest.approx(3)

    item = pystac.Item.from_dict(json.loads(store.get(join(plan.folder, "classes_2024-08-15.stac.json"))))
    assert str(item.datetime).startswith("2024-08-15")
    whole = pystac.Item.from_dict(json.loads(store.get(join(plan.folder, "classes_series.stac.json"))))
    assert str(whole.common_metadata.start_datetime).startswith("2024-07-01")
    assert {link.target for link in whole.get_links("derived_from")} == {*uris, plan.package.uri}
    whole.set_self_href(join(plan.folder, "classes_series.stac.json"))
    for asset in whole.assets.values():
        assert store.exists(str(asset.get_absolute_href())), asset.href

    # The run's page shows the summary, and the same run again finds all of it.
    shown: dict[str, str] = {}
    for kind in ("table", "image"):
        monkeypatch.setattr(task, f"create_{kind}_artifact", lambda **_: None)
    monkeypatch.setattr(task, "create_markdown_artifact", lambda key, markdown: shown.update({key: markdown}))
    again = finish(store, plan, {})
    assert again.already_done
    task._leave_artifacts(store, plan, again)
    assert "### From 2024-07-01 to 2024-08-15" in shown["classify-pixels-changes"]
    assert task.addresses(plan, result)["uri"].endswith("/")

    # What is made of the dates is a matter of finishing alone; an extent may leave a date out.
    other = applied(classifier, uris[::-1], only_plan=True, date_in_name="%Y%m%d")
    assert shard_keys(other) == shard_keys(plan)
    assert other.run_key != plan.run_key
    extent = [500_000, 4_899_994, 500_064, 4_900_000]
    top = applied(classifier, uris, only_plan=True, date_in_name="%Y%m%d", extent=extent)
    assert [planned.date for planned in top.grids] == ["2024-07-01"]
    assert "No imagery of 2024-08-15, 2025-01-02 lies in the extent" in top.remarks[0]

    far = write_scene("e_20250301", second, at=(400, 0))
    lonely = applied(classifier, [uris[0], far], only_plan=True, date_in_name="%Y%m%d")
    assert lonely.remarks[-1].startswith("2024-07-01 and 2025-03-01 share no ground")

    refined = refine(store, RefineParameters(input_result=plan.folder, output_name="plain"))
    made = [output["path"] for output in refined.details["outputs"]]
    assert made == [f"plain_classes_{planned.date}.tif" for planned in plan.grids]


def test_objects_are_followed_from_date_to_date(
    applied: Any, store: Any, detector: Any, write_scene: Any
) -> None:
    def scene(*places: tuple[int, int, int, int]) -> Any:
        image = np.zeros((1, 160, 300), np.uint8)
        for row, col, rows, cols in places:
            image[0, row : row + rows, col : col + cols] = 200
        return image

    stays, moves, goes, beside = (10, 10, 12, 12), (40, 40, 12, 12), (70, 70, 10, 10), (20, 260, 10, 10)
    moved, comes = (43, 42, 12, 12), (100, 100, 14, 14)
    uris = [
        write_scene("s_2021", scene(stays, moves, goes, beside)),
        # This date sees the western part only.
        write_scene("s_2022", scene(stays, moved, comes)[:, :, :200]),
        write_scene("s_2023", scene(stays, goes, beside)),
    ]
    plan, result = applied(
        detector,
        uris,
        time_series="BY_YEAR",
        date_in_name="%Y",
        run_nms=True,
        output_formats=["GEOJSON"],
    )
    layers = {
        year: geopandas.read_parquet(join(plan.folder, f"found_{year}.parquet"))
        for year in (2021, 2022, 2023)
    }
    assert [len(layer) for layer in layers.values()] == [4, 3, 3]
    assert layers[2021]["change"].isna().all()
    assert sorted(layers[2022]["change"]) == ["APPEARED", "STAYED", "STAYED"]
    assert sorted(layers[2023]["change"]) == ["APPEARED", "NOT_SEEN", "STAYED"]
    # One object has one number as long as it is seen; what comes back has a new one.
    first = {year: layer.sort_values("track")["track"].tolist() for year, layer in layers.items()}
    assert first[2021] == [1, 2, 3, 4]
    kept = set(first[2021]) & set(first[2022])
    assert len(kept) == 2
    assert len(kept & set(first[2023])) == 1
    assert set(layers[2021]["source_date"]) == {"2021-01-01T00:00:00"}

    rows = table(store, plan, "found_changes.csv")

    def count(one: str, other: str, change: str) -> int:
        pair = [row for row in rows if (row["from_date"], row["to_date"]) == (one, other)]
        return sum(int(row["objects"]) for row in pair if row["change"] == change)

    kinds = ("STAYED", "APPEARED", "VANISHED", "NOT_SEEN", "CLASS_CHANGED")
    assert [count("2021", "2022", kind) for kind in kinds] == [2, 1, 1, 1, 0]
    assert [count("2022", "2023", kind) for kind in kinds] == [1, 1, 2, 1, 0]
    assert [count("2021", "2023", kind) for kind in kinds] == [3, 0, 1, 0, 0]
    changes = geopandas.read_parquet(join(plan.folder, "found_changes_2021_2022.parquet"))
    vanished = changes[changes["change"] == "VANISHED"]
    top, left = 4_900_000 - 35, 500_000 + 35
    assert vanished.geometry.iloc[0].equals(shapely.box(left, top - 5, left + 5, top))
    assert vanished["to_class"].isna().all()
    best = changes[(changes["change"] == "STAYED") & (changes["iou"] < 1)]
    assert best["iou"].iloc[0] == pytest.approx(9 * 10 / (2 * 144 - 90))
    assert store.exists(join(plan.folder, "found_changes_2021_2022.geojson"))
    by_date = table(store, plan, "found_dates.csv")
    assert [int(row["objects"]) for row in by_date] == [4, 3, 3]
    assert float(by_date[1]["area_m2"]) == pytest.approx((144 + 144 + 196) * CELL_M2, rel=1e-4)
    assert task.outputs_table(store, plan, result)
    smaller = refine(store, RefineParameters(input_result=plan.folder, output_name="big", minimum_area=30))
    assert [output["objects"] for output in smaller.details["outputs"][::2]] == [2, 3, 1]
    assert smaller.details["outputs"][0]["path"] == "big_2021.parquet"


def test_a_raster_without_a_date_is_an_error_with_its_remedy(
    applied: Any, classifier: Any, write_scene: Any
) -> None:
    uris = [write_scene("dated_20240701", flat(9, 32, 32)), write_scene("undated", flat(9, 32, 32))]
    with pytest.raises(BadInputError, match=r"2 of 2 rasters have no date.*date_in_name"):
        applied(classifier, uris)
    with pytest.raises(BadInputError, match=r"undated\.tif has no date like"):
        applied(classifier, uris, date_in_name="%Y%m%d")
    for uri, when in zip(uris, ("2024:07:01 10:00:00", "2024:07:01 11:00:00"), strict=True):
        with rasterio.open(uri, "r+") as dataset:
            dataset.update_tags(TIFFTAG_DATETIME=when)
    plan, result = applied(classifier, uris)
    assert [planned.date for planned in plan.grids] == ["2024-07-01"]
    assert "nothing to compare" in result.manifest.details["remarks"][0]
