"""Plan and parts through the real host: results equal the function on the whole array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from tasks.errors import BadInputError, DeviceError, HostError, NotFoundError
from tasks.host import FunctionFailure
from tasks.imagery import Window
from tasks.infer import part as part_module
from tasks.infer.describe import describe
from tasks.infer.operators import read_pixels
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.part import compute_part, is_done, load_plan, reports, save_plan
from tasks.infer.parts import LEAST_PIXELS
from tasks.infer.plan import inspect_collection, make_plan
from tasks.infer.planned import Plan
from tasks.infer.shards import ShardStore
from tasks.settings import settings


def planned(
    store: Any, package: Any, uris: list[str], processor: Any = "CPU", workers: int = 0, **more: Any
) -> Plan:
    values = {
        "input_raster": uris,
        "model": "m.dlpk",
        "output_classified_raster": "bright",
        "shard_size": 100,
    }
    parameters = ClassifyPixelsParameters.model_validate({**values, **more})
    arguments = {item.name: item.value for item in parameters.model_arguments}
    return make_plan(
        parameters,
        rasters=inspect_collection(uris),
        package=package,
        package_uri="m.dlpk",
        description=describe(package, arguments, store, foreign=False),
        processor=processor,
        workers=workers,
    )


def expected(array: Any) -> Any:
    total = array.astype(np.int64).sum(axis=0)
    for axis in (0, 1):
        total = ndimage.correlate1d(total, np.ones(7, np.int64), axis=axis, mode="constant")
    return np.where(total > 3 * 128 * 49, 2, 1).astype(np.uint8)


def pixels_of(store: Any, plan: Plan, shape: tuple[int, int]) -> Any:
    sink, result = ShardStore(store, settings().root), np.zeros(shape, np.uint8)
    for shard in plan.shards:
        result[shard.target.slices_in(Window(0, 0, *shape))] = read_pixels(sink.get(shard))
    return result


def test_parts_give_what_the_function_gives_on_the_whole_array(
    store: Any, classifier: Any, write_scene: Any, texture: Any
) -> None:
    uris = [
        write_scene("north", texture[:, :137]),
        write_scene("south", texture[:, 137:], at=(137, 0)),
    ]
    plan = planned(store, classifier, uris, shards_per_part=4)
    assert len(plan.parts) == 3
    plan = load_plan(store, save_plan(store, plan))
    for part in (2, 0, 1):
        assert not is_done(store, plan, part)
        report = compute_part(store, plan, part, package=classifier)
        assert is_done(store, plan, part)
        assert report.device == "cpu"
        assert report.counters["shards"] == plan.parts[part][1] - plan.parts[part][0]
    np.testing.assert_array_equal(pixels_of(store, plan, (300, 260)), expected(texture))
    assert [item.part for item in reports(store, plan)] == [0, 1, 2]


def test_a_part_that_died_is_taken_up_where_it_stopped(
    store: Any, classifier: Any, write_scene: Any, texture: Any
) -> None:
    uri = write_scene("scene", texture)
    failing = [{"name": "fail_at", "value": "12"}]
    broken = planned(store, classifier, [uri], model_arguments=failing)
    with pytest.raises(FunctionFailure, match="told to fail"):
        compute_part(store, broken, 0, package=classifier)
    stored = [shard for shard in broken.shards if ShardStore(store, settings().root).exists(shard)]
    assert 0 < len(stored) < len(broken.shards)
    # Another process of the same part: only missing shards are computed, by fewer calls than it fails at.
    for _ in range(4):
        if is_done(store, broken, 0):
            break
        try:
            compute_part(store, broken, 0, package=classifier)
        except FunctionFailure:
            continue
    np.testing.assert_array_equal(pixels_of(store, broken, (300, 260)), expected(texture))
    again = compute_part(store, broken, 0, package=classifier)
    assert (again.counters["shards"], again.counters["tiles"]) == (0, 0)


def test_parts_that_were_chosen_once_stay_whoever_is_there_when_the_work_is_started_again(
    store: Any, classifier: Any, write_scene: Any, texture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEAST_PIXELS, "CPU", 10_000)
    uri = write_scene("scene", texture)
    two, four = (planned(store, classifier, [uri], workers=workers) for workers in (2, 4))
    assert len(two.parts) < len(four.parts)
    address = save_plan(store, two)
    # Another run of the same work looked before the plan was there, and saves its own after it.
    looked = iter([NotFoundError("There is none yet.", "Wait."), None])
    read = part_module.load_plan

    def late(store: Any, uri: str) -> Plan:
        if (error := next(looked, None)) is not None:
            raise error
        return read(store, uri)

    monkeypatch.setattr(part_module, "load_plan", late)
    assert save_plan(store, four) == save_plan(store, four) == address
    assert read(store, address).parts == two.parts
    asked = planned(store, classifier, [uri], shards_per_part=1)
    assert save_plan(store, asked) != address
    assert read(store, save_plan(store, asked)).parts == asked.parts


def test_the_description_is_asked_once_and_then_read(
    store: Any, classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = describe(classifier, {"padding": "5"}, store, foreign=False)
    assert (first.geometry.rows, first.geometry.padding, first.extract_bands) == (64, 5, [0, 1, 2])

    def refuse(*_args: Any, **_more: Any) -> None:
        raise AssertionError("the function was started again")

    monkeypatch.setattr("tasks.infer.describe.HostProcess", refuse)
    assert describe(classifier, {"padding": "5"}, store, foreign=False) == first
    with pytest.raises(AssertionError, match="started again"):
        describe(classifier, {"padding": "6"}, store, foreign=False)


def test_an_unknown_model_argument_names_those_that_exist(store: Any, classifier: Any) -> None:
    with pytest.raises(BadInputError, match=r"'paddings'.*padding, tile, level, fail_at"):
        describe(classifier, {"paddings": "5"}, store, foreign=False)


def test_a_gpu_plan_is_not_run_on_a_cpu(store: Any, classifier: Any, write_scene: Any, texture: Any) -> None:
    plan = planned(store, classifier, [write_scene("scene", texture)], processor="GPU")
    with pytest.raises(DeviceError, match="GPU"):
        compute_part(store, plan, 0, package=classifier)
    assert not is_done(store, plan, 0)


def test_a_function_that_is_not_the_planned_one_is_refused(
    store: Any, classifier: Any, write_scene: Any, texture: Any
) -> None:
    plan = planned(store, classifier, [write_scene("scene", texture)])
    other = plan.model_copy(update={"arguments": {"padding": "4"}})
    with pytest.raises(HostError, match="differently"):
        compute_part(store, other, 0, package=classifier)
