"""What a function says about itself, and what the engine cannot give it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasks.errors import PackageError
from tasks.infer.describe import description_of
from tasks.package import ModelDefinition


def test_objects_that_are_no_polygons_are_refused_not_lost() -> None:
    definition = ModelDefinition.model_validate({"ImageHeight": 8, "ImageWidth": 8})
    package = cast(Any, SimpleNamespace(name="trees", definition=definition))
    host = SimpleNamespace(
        configuration={}, geometry_type=1, takes_batches=False, output_info={}, scalars={}, fields=[]
    )
    with pytest.raises(PackageError, match="geometry point, and the tool's layers hold polygons"):
        description_of(cast(Any, host), package)
