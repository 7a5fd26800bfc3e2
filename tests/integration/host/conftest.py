"""Tiny packages, written by the tests: an ``.emd`` and functions that need numpy only."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.host import HostLimits
from tasks.package import Package, read_definition
from tasks.settings import settings

MakePackage = Callable[..., Package]

# What every function of the tests shares; a test adds or replaces methods.
_HEAD = """
import json
import os
import sys
import numpy as np


class {name}:
    def __init__(self):
        self.name = "{name}"
        self.description = "a test"

    def initialize(self, **kwargs):
        self.given = kwargs

    def getParameterInfo(self):
        return [
            {{"name": "raster", "dataType": "raster", "required": True}},
            {{"name": "model", "dataType": "string", "required": True}},
            {{"name": "device", "dataType": "numeric"}},
            {{"name": "padding", "dataType": "numeric", "value": "0"}},
        ]

    def getConfiguration(self, **scalars):
        self.scalars = scalars
        self.padding = int(scalars.get("padding", 0))
        return {{"padding": self.padding, "tx": 8, "ty": 8, "fixedTileSize": 1, "inputMask": True}}
"""


@pytest.fixture(autouse=True)
def any_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions run on a kernel that contains less, too; the tests of containment take this back."""
    monkeypatch.setattr(settings(), "allow_uncontained", True)


@pytest.fixture
def make_package(tmp_path: Path) -> MakePackage:
    """``make_package(body, name="Probe", files={...}, definition={...})``: an unpacked package.

    ``body`` holds the methods of the class, indented or not; ``source`` replaces the whole file.
    """

    def make(
        body: str = "",
        *,
        name: str = "Probe",
        source: str | None = None,
        file_name: str | None = None,
        files: Mapping[str, str] | None = None,
        definition: Mapping[str, Any] | None = None,
    ) -> Package:
        folder = tmp_path / f"package-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        text = source
        if text is None:
            text = _HEAD.format(name=name) + textwrap.indent(textwrap.dedent(body), "    ")
        file_name = file_name or f"{name}.py"
        (folder / file_name).write_text(text)
        for path, content in (files or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content)
        emd = {
            "Framework": "PyTorch",
            "ModelType": "ImageClassification",
            "InferenceFunction": file_name,
            "ExtractBands": [0, 1, 2],
            "ImageHeight": 8,
            "ImageWidth": 8,
            "Classes": [
                {"Value": 1, "Name": "tree", "Color": [0, 255, 0]},
                {"Value": 2, "Name": "roof", "Color": [255, 0, 0]},
            ],
            **(definition or {}),
        }
        text = json.dumps(emd)
        (folder / "probe.emd").write_text(text)
        return Package(folder=folder, definition=read_definition(text), digest="0" * 64, name="probe")

    return make


@pytest.fixture
def limits() -> HostLimits:
    """Short ones."""
    return HostLimits(start_timeout_s=20.0, block_timeout_s=20.0, memory_mb=2000)
