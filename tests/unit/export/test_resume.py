"""Parts in any order, cut short and begun again, under any name: always the same bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import StoreError
from tasks.export import candidates, cut, cutter, finish, inputs, plan
from tasks.export.parameters import ExportParameters
from tasks.labels import prepared
from tasks.store import ObjectStore, Publication
from tests.unit.export.oracle import differences

MakeScene = Callable[..., Any]
Export = Callable[..., Any]

_FORMATS = ["Classified_Tiles", "COCO_rectangles", "RCNN_Masks", "Imagenet", "CycleGAN"]


def _bytes(folder: Path) -> dict[str, bytes]:
    """All that readers of the format see; the manifests name the export and its parts."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.parent.name not in ("parts", "plan")
        and path.name not in ("manifest.json", "plan.json")
    }


def _cut(store: ObjectStore, made: plan.ExportPlan, order: list[int]) -> None:
    for part in order:
        cut.cut_part(store, made, part)


@pytest.mark.parametrize(
    ("name", "seed", "dies_after"),
    [*((name, 1, 5) for name in _FORMATS), ("Classified_Tiles", 2, 0), ("Imagenet", 3, 13)],
)
def test_any_order_and_any_death(
    make_scene: MakeScene, export: Export, name: str, seed: int, dies_after: int
) -> None:
    scene = make_scene(rows=90, cols=121, count=12)
    more: dict[str, Any] = {"metadata_format": name, "tile_size": 32, "stride_size": 30}
    if name == "CycleGAN":
        more["additional_input_raster"] = [scene.raster]
    whole = export(scene, output_location=f"whole-{seed}-{dies_after}", **more)
    parameters = ExportParameters(
        input_raster=[scene.raster],
        input_class_data=scene.labels,
        output_location=f"parts-{seed}-{dies_after}",
        chips_per_part=3,
        **more,
    )
    store = ObjectStore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "_tract_px", lambda *_: 50)
        made = plan.plan_in_force(store, parameters, inputs.inspect_inputs(parameters))
        plan.save_plan(store, made)
        assert len(made.parts) > 3
        order = list(range(len(made.parts)))
        random.Random(seed).shuffle(order)
        put, written = Publication.put_file, []

        def dies(self: Publication, *arguments: Any, **options: Any) -> Any:
            written.append(arguments[0])
            if len(written) > dies_after:
                raise StoreError("The store is gone.", "Wait.")
            return put(self, *arguments, **options)

        with pytest.MonkeyPatch.context() as deadly:
            deadly.setattr(Publication, "put_file", dies)
            with pytest.raises(StoreError, match="gone"):
                _cut(store, made, order)
        # Another worker, which has only the plan; the labels' local copies are gone.
        made = plan.load_plan(store, f"{made.folder_uri}/{plan.PLAN}")
        _cut(store, made, order[::-1])
        finish.finish(store, made, {})
    assert differences(_bytes(Path(made.folder_uri)), _bytes(whole.folder)) == []


def test_a_name_changes_no_byte_but_its_own(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene(rows=90, cols=121, count=12)
    first = export(scene, output_location="first", chips_per_part=2)
    second = export(scene, output_location="second", chips_per_part=100)
    assert first.folder != second.folder
    assert first.folder.name == second.folder.name
    assert differences(first.files(), second.files()) == []


def test_two_names_at_once_do_not_disturb_each_other(
    make_scene: MakeScene, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene(rows=90, cols=121, count=12)
    whole = export(scene, output_location="whole")
    # As with labels so many that they are not kept in memory.
    monkeypatch.setattr(prepared, "_KEPT_FEATURES", 0)
    store = ObjectStore()
    plans = []
    for name in ("one", "two"):
        parameters = ExportParameters(
            input_raster=[scene.raster],
            input_class_data=scene.labels,
            output_location=name,
            tile_size=64,
            stride_size=40,
            chips_per_part=2,
        )
        made = plan.plan_in_force(store, parameters, inputs.inspect_inputs(parameters))
        plan.save_plan(store, made)
        plans.append(made)
    one, two = plans
    _cut(store, one, list(range(len(one.parts))))

    lanes = cutter.Cutter.lanes

    def finish_the_other(*arguments: Any) -> Any:
        # It cleans up behind itself, while this one has a part open.
        finish.finish(store, one, {})
        return lanes(*arguments)

    monkeypatch.setattr(cutter.Cutter, "lanes", finish_the_other)
    _cut(store, two, list(range(len(two.parts))))
    finish.finish(store, two, {})
    for made in plans:
        assert differences(_bytes(Path(made.folder_uri)), _bytes(whole.folder)) == []


def test_what_was_prepared_is_removed_in_the_end(
    make_scene: MakeScene, export: Export, tmp_path: Path
) -> None:
    done = export(make_scene(rows=90, cols=121, count=12))
    assert not list(done.folder.rglob("*.fgb"))
    assert not list((tmp_path / "cache").rglob("*.fgb"))
