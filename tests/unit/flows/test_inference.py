"""What both kinds of run of an inference tool call."""

from __future__ import annotations

import pytest

from flows import _inference
from tasks.infer.parameters import ClassifyPixelsParameters


def test_a_dry_run_plans_nothing_and_submits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise AssertionError("work was started")

    for name in ("plan_inference", "run_parts", "finish_inference"):
        monkeypatch.setattr(_inference, name, refuse)
    monkeypatch.setattr(_inference, "estimate_inference", lambda _parameters: {"tiles": "3"})
    values = {"input_raster": ["a.tif"], "model": "m.dlpk", "output_classified_raster": "c"}
    parameters = ClassifyPixelsParameters.model_validate({**values, "dry_run": True})
    assert _inference.run_inference(parameters, verb="Classify") == {"tiles": "3"}
    with pytest.raises(AssertionError, match="work was started"):
        _inference.run_inference(parameters.model_copy(update={"dry_run": False}), verb="Classify")
