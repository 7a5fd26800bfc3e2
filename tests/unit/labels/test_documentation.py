"""docs/labels.md does what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

from tasks.labels.__main__ import main
from tasks.labels.schema_file import parse_schema
from tasks.labels.template import LAYER

TEXT = (Path(__file__).parents[3] / "docs" / "labels.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_class_schema_file_shown_has_the_classes_named() -> None:
    (shown,) = blocks("json")
    schema = parse_schema(shown.encode(), "docs/labels.md")
    assert [(item.value, item.name, item.parent) for item in schema] == [
        (1, "Tree", None),
        (2, "Road", None),
        (11, "Oak", 1),
        (12, "Pine", 1),
    ]


def test_the_commands_shown_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("classes.json").write_text(blocks("json")[0])
    with rasterio.open(
        "scene.tif", "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8", crs="EPSG:32613",
        transform=rasterio.Affine(1, 0, 5e5, 0, -1, 4e6),
    ) as dataset:  # fmt: skip
        dataset.write(np.ones((1, 4, 4), np.uint8))
    commands = [shlex.split(line)[3:] for block in blocks("sh") for line in block.splitlines()]
    assert sorted(command[0] for command in commands) == ["check", "classes", "template", "template"]
    for command in sorted(commands, key=lambda one: one[0] == "classes"):
        if command[0] == "classes":
            drawn = geopandas.GeoDataFrame(
                {"classvalue": [11]}, geometry=[shapely.box(5e5, 4e6, 5e5 + 9, 4e6 + 9)], crs="EPSG:32612"
            )
            drawn.to_file("trees.gpkg", layer=LAYER, mode="a", promote_to_multi=True)
        assert main(command) == 0, capsys.readouterr().err
    assert geopandas.read_file("roads.gpkg", layer=LAYER).crs == "EPSG:32613"
    assert '"name": "Oak"' in capsys.readouterr().out


def test_the_python_shown_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("classes.json").write_text(blocks("json")[0])
    (shown,) = blocks("python")
    exec(compile(shown, "docs/labels.md", "exec"), {})
    assert Path("trees.gpkg").exists()
