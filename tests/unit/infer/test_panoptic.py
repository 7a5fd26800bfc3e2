"""Which panoptic packages the tools take, and what is said of the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import pytest

from tasks.errors import BadInputError, PackageError
from tasks.infer import prepare
from tasks.infer.both import check_tells_both
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.plan import check_package
from tasks.package import ModelDefinition

Tool = Literal["detect_objects", "classify_pixels", "classify_objects"]


def package(kind: str, function: str) -> Any:
    definition = ModelDefinition.model_validate(
        {"ModelType": kind, "InferenceFunction": function, "Classes": [{"Value": 1, "Name": "Tree"}]}
    )
    return SimpleNamespace(name="p", definition=definition)


@pytest.mark.parametrize("tool", ["detect_objects", "classify_pixels"])
def test_our_own_serves_both_tools_and_those_of_others_none(tool: Tool) -> None:
    check_package(package("PanopticSegmenter", "ChiplinePanopticSegmenter.py"), tool)
    with pytest.raises(PackageError, match="was not made here") as refused:
        check_package(package("PanopticSegmenter", "ArcGISPanopticSegmenter.py"), tool)
    assert "MASK2FORMER" in refused.value.remedy
    with pytest.raises(PackageError, match="classify_objects does not apply"):
        check_package(package("PanopticSegmenter", "ChiplinePanopticSegmenter.py"), "classify_objects")


def test_a_detector_gives_no_classified_raster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ClassifyPixelsParameters.model_validate(
        {"input_raster": ["s3://chipline/a.tif"], "model": "models:/p/1", "output_classified_raster": "c"}
    )
    found = package("ObjectDetection", "ChiplineObjectDetector.py")
    monkeypatch.setattr(prepare, "package_uri", lambda model: model)
    monkeypatch.setattr("tasks.package.fetch.fetch_package", lambda _uri, _store: found)
    with pytest.raises(BadInputError, match="p is of type ObjectDetection") as refused:
        check_tells_both(asked)
    assert "Leave output_classified_raster out" in refused.value.remedy
    found = package("PanopticSegmenter", "ChiplinePanopticSegmenter.py")
    check_tells_both(asked)
