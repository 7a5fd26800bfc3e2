"""Packages from elsewhere on a real stack: shown, published, refused, approved by the operator, run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tasks.package import read_definition, write_dlpk
from tasks.package.__main__ import main

if TYPE_CHECKING:
    from tests.conftest import Runs

SCENE = "s3://chipline/imagery/florida_trees/osbs_029.tif"
# One colour for all it sees; the second parameter has no literal default.
FUNCTION = """
import numpy as np

class OneClass:
    def initialize(self, **kwargs):
        pass

    def getParameterInfo(self):
        return [
            {"name": "raster", "dataType": "raster", "required": True},
            {"name": "padding", "dataType": "numeric", "value": 0, "description": "Pixels around"},
        ]

    def getConfiguration(self, **scalars):
        return {"extractBands": (0, 1, 2), "padding": 0, "tx": 64, "ty": 64, "fixedTileSize": 1}

    def updateRasterInfo(self, **kwargs):
        kwargs["output_info"]["bandCount"] = 1
        kwargs["output_info"]["pixelType"] = "u1"
        return kwargs

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        block = pixelBlocks["raster_pixels"]
        pixelBlocks["output_pixels"] = np.full((1, *block.shape[1:]), 3, dtype="u1")
        return pixelBlocks
"""
DEFINITION = {
    "ModelType": "ImageClassification",
    "ImageHeight": 64,
    "ImageWidth": 64,
    "ExtractBands": [0, 1, 2],
    "Classes": [{"Value": 3, "Name": "All | of it", "Color": [10, 20, 30]}],
}


@pytest.fixture
def incoming(as_role: Any) -> str:
    """Definition and function under an address of the bucket, as the operator puts them there."""
    from tasks.store import ObjectStore

    as_role("admin")
    folder = f"s3://chipline/incoming/{uuid4().hex[:8]}"
    ObjectStore().put(f"{folder}/model.emd", json.dumps({**DEFINITION, "Run": folder}).encode())
    ObjectStore().put(f"{folder}/OneClass.py", FUNCTION.encode())
    return folder


def _card(runs: Runs, run: str) -> str:
    (artifact,) = [item for item in runs.artifacts(run) if item["key"] == "package-card"]
    return str(artifact["data"])


def _published(run: str) -> str:
    from tasks.store import ObjectStore

    (uri,) = [
        item.uri
        for item in ObjectStore().list(f"s3://chipline/packages/{run}/")
        if item.uri.endswith(".dlpk")
    ]
    return uri


@pytest.mark.slow
def test_a_model_from_elsewhere_runs_after_the_operator_s_word_only(
    runs: Runs, incoming: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"all-{uuid4().hex[:8]}"
    packing = {
        "definition": f"{incoming}/model.emd",
        "inference_function": f"{incoming}/OneClass.py",
        "weights": None,
        "output_name": name,
    }
    packed = runs.wait(runs.start("package_model/package_model", packing))
    assert packed["state_type"] == "COMPLETED", runs.message(packed)
    card = _card(runs, packed["id"])
    assert "All \\| of it" in card
    assert "| padding | numeric | 0 | Pixels around |" in card
    uri = _published(name)

    applying = {"input_raster": [SCENE], "model": uri, "output_classified_raster": name}
    refused = runs.wait(runs.start("classify_pixels/classify_pixels", applying))
    assert refused["state_type"] == "FAILED"
    assert "neither made nor approved" in runs.message(refused)

    # The role of flows may not approve, and says who may; the package stays where it is.
    approving = {"approve": True, "approved_by": "Ada", "approval_reason": "Mine"}
    denied = runs.wait(runs.start("add_package/add_package", {"package": uri, **approving}))
    assert denied["state_type"] == "FAILED"
    assert "infra.local env admin" in runs.message(denied)

    assert main(["approve", uri, "--by", "Ada", "--reason", "Made by this test"]) == 0
    assert "approved by Ada" in capsys.readouterr().out
    applied = runs.wait(runs.start("classify_pixels/classify_pixels", applying))
    assert applied["state_type"] == "COMPLETED", runs.message(applied)
    assert runs.says(applied["id"], "approved by Ada")

    # Added again, the approved package becomes what its name means.
    added = runs.wait(runs.start("add_package/add_package", {"package": uri}))
    assert added["state_type"] == "COMPLETED", runs.message(added)
    from tasks.tracking import resolve_model

    assert resolve_model(f"models:/{name}@current") == uri

    # Taken back, it runs no more, by whatever address.
    assert main(["revoke", uri, "--by", "Grace", "--reason", "Taken back by this test"]) == 0
    by_alias = {**applying, "model": f"models:/{name}@current"}
    stopped = runs.wait(runs.start("classify_pixels/classify_pixels", by_alias))
    assert stopped["state_type"] == "FAILED"
    assert "revoked by Grace" in runs.message(stopped)
    assert "Taken back by this test" in runs.message(stopped)


def test_a_broken_package_is_shown_with_all_its_problems_and_not_published(
    runs: Runs, as_role: Any, tmp_path: Path
) -> None:
    from tasks.store import ObjectStore

    as_role("admin")
    name = f"broken-{uuid4().hex[:8]}"
    wrong = {**DEFINITION, "Classes": [], "InferenceFunction": "gone.py"}
    write_dlpk(tmp_path / f"{name}.dlpk", read_definition(json.dumps(wrong)), {})
    uri = f"s3://chipline/incoming/{name}.dlpk"
    ObjectStore().upload(tmp_path / f"{name}.dlpk", uri)
    for flow in ("inspect_package", "add_package"):
        run = runs.wait(runs.start(f"{flow}/{flow}", {"package": uri}))
        assert run["state_type"] == "FAILED"
        assert "gone.py" in runs.message(run)
        card = _card(runs, run["id"])
        assert "2 problems" in card
        assert "Classes is missing" in card
    assert not list(ObjectStore().list(f"s3://chipline/packages/{name}"))
