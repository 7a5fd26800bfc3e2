"""A layer to draw labels in, published."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyogrio
import pytest
from pydantic import ValidationError

from tasks.errors import BadInputError, NotFoundError
from tasks.labels.parameters import LabelLayerParameters
from tasks.labels.publish_layer import LAYER_FILE, publish_label_layer
from tasks.settings import settings
from tasks.store import ObjectStore, read_manifest


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
    settings.cache_clear()
    yield
    settings.cache_clear()


def _parameters(folder: Path, **values: Any) -> LabelLayerParameters:
    schema = folder / "classes.json"
    schema.write_text(json.dumps({"classes": [{"value": 2, "name": "Baum é"}]}), encoding="utf-8")
    return LabelLayerParameters(
        **{"class_schema": str(schema), "output_name": "trees", "out_sr": "EPSG:32612", **values}
    )


def test_a_layer_is_published_once(tmp_path: Path) -> None:
    store = ObjectStore()
    folder, classes = publish_label_layer(store, _parameters(tmp_path), {})
    assert "Baum é" in classes
    info = pyogrio.read_info(Path(folder) / LAYER_FILE, layer="labels")
    assert (info["features"], info["crs"]) == (0, "EPSG:32612")
    manifest = read_manifest(store, folder)
    assert manifest is not None
    assert manifest.files == 1
    assert publish_label_layer(store, _parameters(tmp_path), {})[0] == folder
    assert publish_label_layer(store, _parameters(tmp_path, out_sr="EPSG:4326"), {})[0] != folder


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises((BadInputError, ValidationError), match="either the raster or out_sr"):
        _parameters(tmp_path, raster="a.tif")
    gone = _parameters(tmp_path, class_schema=str(tmp_path / "gone.json"))
    with pytest.raises(NotFoundError, match=r"gone\.json"):
        publish_label_layer(ObjectStore(), gone, {})
