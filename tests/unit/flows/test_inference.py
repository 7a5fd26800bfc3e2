"""What both kinds of run of an inference tool call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flows import _inference
from tasks.errors import BadInputError
from tasks.infer.both import with_classes
from tasks.infer.parameters import ClassifyPixelsParameters, DetectObjectsParameters

VALUES = {"input_raster": ["a.tif"], "model": "m.dlpk", "output_classified_raster": "c"}


def parameters(**more: Any) -> ClassifyPixelsParameters:
    return ClassifyPixelsParameters.model_validate({**VALUES, **more})


class Calls:
    """Stands for all that a run calls, and notes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
        self.made: list[str] = []
        self.held = [True]
        self.whole = True
        plan = {"plan_uri": "plan", "work_key": "key", "parts": 2, "shards": 9, "done": False}
        self.answers: dict[str, Any] = {
            "plan_inference": plan,
            "plan_calibration": {"plan_uri": "plan", "why_not": ""},
            "run_leaf": True,
            "run_parts": None,
            "parts_done": None,
            "finish_inference": {"uri": "u"},
            "estimate_inference": {"tiles": "3"},
            **answers,
        }
        for name in self.answers:
            monkeypatch.setattr(_inference, name, self._noted(name))
        monkeypatch.setattr(_inference, "workers_of", lambda _leaf: 2)
        monkeypatch.setattr(_inference, "is_plan_whole", lambda _uri: self.whole)
        monkeypatch.setattr(_inference, "hold_lease", self._lease)

    def _noted(self, name: str) -> Any:
        def call(*given: Any, **_more: Any) -> Any:
            self.made.append(name if name != "estimate_inference" else f"{name}: {given[1]}")
            return self.answers[name]

        return call

    @contextmanager
    def _lease(self, _uri: str) -> Iterator[Any]:
        self.made.append("lease")
        yield self
        self.made.append("released")

    def keep(self) -> None:
        """The lease's."""

    def held_all_along(self) -> bool:
        """The lease's."""
        return self.held.pop()


def test_parts_and_finish_run_under_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    assert _inference.run_inference(parameters(), verb="Classify") == {"uri": "u"}
    assert calls.made == [
        "plan_inference", "lease", "parts_done", "run_parts", "finish_inference", "released",
    ]  # fmt: skip


def test_what_was_published_before_is_only_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    calls.answers["plan_inference"]["done"] = True
    _inference.run_inference(parameters(), verb="Classify")
    assert calls.made == ["plan_inference", "finish_inference"]


def test_after_a_lost_lease_parts_are_looked_at_again_and_a_lost_plan_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = Calls(monkeypatch)
    calls.held, calls.whole = [True, False], False
    _inference.run_inference(parameters(), verb="Classify")
    assert calls.made.count("plan_inference") == calls.made.count("run_parts") == 2
    assert calls.made[-2:] == ["finish_inference", "released"]


def test_a_dry_run_times_tiles_in_the_pool_and_starts_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    assert _inference.run_inference(parameters(dry_run=True), verb="Classify") == {"tiles": "3"}
    assert calls.made == ["plan_calibration", "run_leaf", "estimate_inference: "]


def test_a_dry_run_says_why_there_are_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, run_leaf=False)
    _inference.run_inference(parameters(dry_run=True), verb="Classify")
    assert calls.made[-1] == "estimate_inference: no worker of the pool was free within 120 s"
    calls = Calls(monkeypatch, plan_calibration={"plan_uri": "plan", "why_not": "all is done"})
    _inference.run_inference(parameters(dry_run=True), verb="Classify")
    assert calls.made == ["plan_calibration", "estimate_inference: all is done"]


def objects(*named: str, **more: Any) -> DetectObjectsParameters:
    arguments = [{"name": "output_classified_raster", "value": name} for name in named]
    arguments.append({"name": "threshold", "value": "0.3"})
    given = {"input_raster": ["a.tif"], "model": "m.dlpk", "output_objects": "o", **more}
    return DetectObjectsParameters.model_validate({**given, "model_arguments": arguments})


def test_objects_bring_a_classified_raster_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, check_tells_both=None)
    calls.held = [True] * 3
    found = _inference.run_inference(objects("c"), verb="Detect")
    assert found == {"uri": "u", "classified_raster_uri": "u"}
    assert calls.made[0] == "check_tells_both"
    assert calls.made.count("plan_inference") == calls.made.count("finish_inference") == 2
    calls.made.clear()
    _inference.run_inference(objects(), verb="Detect")
    assert calls.made.count("plan_inference") == 1
    assert "check_tells_both" not in calls.made


def test_both_works_have_the_same_place_and_arguments() -> None:
    shared = {"extent": [0, 0, 5, 5], "cell_size": 2, "mask": "m.gpkg", "dry_run": True, "out_sr": 32612}
    features = {"output_formats": ["GEOJSON"], "run_nms": True}
    first, classes = with_classes(objects(" c ", **shared, **features))
    assert classes is not None
    assert classes.output == "c"
    for made in (first, classes):
        assert {name: getattr(made, name) for name in shared} == shared
        assert [(item.name, item.value) for item in made.model_arguments] == [("threshold", "0.3")]
    assert classes.output_formats == []
    given = parameters()
    assert with_classes(given) == (given, None)
    for wrong in (("",), ("c", "d")):
        with pytest.raises(BadInputError, match="name of one output"):
            with_classes(objects(*wrong))
