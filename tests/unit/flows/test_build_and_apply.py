"""The chain takes what it can apply, and says why it cannot take the rest."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from flows.build_and_apply import BuildAndApplyParameters
from tasks.train.parameters import ModelType, kind_of

GIVEN = {"output_name": "a", "input_raster": ["s3://b/i.tif"], "input_class_data": "s3://b/l.gpkg",
         "apply_raster": ["s3://b/j.tif"]}  # fmt: skip


@pytest.mark.parametrize("model", get_args(ModelType))
def test_every_model_type_is_applied_or_refused_with_its_reason(model: str) -> None:
    applied = ("pixels", "edges", "roads", "connected roads", "objects", "instances", "panoptic")
    if kind_of(model) in applied:
        made = BuildAndApplyParameters.model_validate({**GIVEN, "model_type": model, "batch_size": None})
        assert made.batch_size is None
        return
    reasons = {
        "labels": "names the class of given objects",
        "change": "compares two dates",
        "custom": "custom_model",
    }
    with pytest.raises(ValidationError, match=reasons.get(kind_of(model), "pairs of pictures")):
        BuildAndApplyParameters.model_validate({**GIVEN, "model_type": model})
