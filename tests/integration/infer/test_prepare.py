"""From parameters to a plan: bad input ends in one message that names the remedy, and leaves nothing."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ChiplineError
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.prepare import prepare
from tasks.package.publish import publish_package
from tasks.settings import settings


@pytest.fixture
def given(store: Any, classifier: Any, write_scene: Any, texture: Any, tmp_path: Path) -> dict[str, Any]:
    """Parameters that are all right."""
    assert classifier.name == "bright"
    return {
        "input_raster": [write_scene("scene", texture)],
        "model": publish_package(store, tmp_path / "bright.dlpk", made_by="test"),
        "output_classified_raster": "classes",
    }


def test_good_parameters_give_a_plan(store: Any, given: dict[str, Any]) -> None:
    plan = prepare(ClassifyPixelsParameters.model_validate(given), store)
    assert len(plan.shards) == 1
    assert not plan.package.foreign
    assert plan.description.scalars["padding"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_raster": ["{tmp}/missing.tif"]}, r"missing\.tif.*Check the path"),
        ({"input_raster": ["/etc/passwd"]}, "CHIPLINE_ALLOWED_ROOTS"),
        ({"model": "{tmp}/imagery/scene.tif"}, r"not a deep learning package.*\.dlpk"),
        ({"model": "{tmp}/missing.dlpk"}, "no package.*Check the path"),
        ({"model": "{tmp}/foreign.dlpk"}, "CHIPLINE_APPROVED_PACKAGES"),
        ({"model": "{tmp}/broken.dlpk"}, "pack it again"),
        ({"model_arguments": [{"name": "paddings", "value": "5"}]}, "padding, tile, level"),
        ({"model_arguments": [{"name": "padding", "value": "much"}]}, "padding.*number"),
        ({"extent": [0, 0, 1, 1]}, "does not touch"),
        ({"processor_type": "GPU"}, "AUTO or CPU"),
        ({"output_classified_raster": "a/b"}, "letters, digits"),
    ],
)
def test_bad_input_is_one_message_with_its_remedy(
    store: Any,
    given: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "broken.dlpk").write_text("no zip")
    # The same content in another zip: a package that nobody has vouched for.
    with zipfile.ZipFile(shutil.copy(tmp_path / "bright.dlpk", tmp_path / "foreign.dlpk"), "a") as archive:
        archive.comment = b"from elsewhere"
    wrong: dict[str, Any] = {
        name: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for name, value in change.items()
    }
    if "input_raster" in wrong:
        wrong["input_raster"] = [uri.replace("{tmp}", str(tmp_path)) for uri in wrong["input_raster"]]
    with pytest.raises(ChiplineError, match=message):
        prepare(ClassifyPixelsParameters.model_validate({**given, **wrong}), store)
    assert not list(store.list(f"{settings().root}/outputs/"))
    assert not list(store.list(f"{settings().root}/shards/"))
