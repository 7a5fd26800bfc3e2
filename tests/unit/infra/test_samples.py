"""Sample values, of the deployments and of the demo, are values that the tools accept."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from flows._tool import ToolFlow
from infra.demo.chains import CHAINS
from infra.local.deployments import declared
from infra.local.services import pools

DEPLOYMENTS = {item["name"]: item for item in declared()}
TOOLS = [
    "inspect_package",
    "add_package",
    "package_model",
    "create_label_layer",
    "export_training_data",
    "train_deep_learning_model",
    "detect_objects",
    "classify_pixels",
    "detect_change",
    "classify_objects",
    "non_maximum_suppression",
    "refine_results",
    "compute_accuracy",
    "compare_models",
    "search_hyperparameters",
    "build_and_apply",
    "collect_shards",
]


def _flow(deployment: dict[str, Any]) -> Any:
    path, _, name = deployment["entrypoint"].partition(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


@pytest.mark.parametrize("name", TOOLS)
def test_a_deployments_sample_values_fit_its_tool(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    flow = _flow(deployment)
    assert isinstance(flow, ToolFlow)
    assert flow.name == name
    checked = flow.validate_parameters(deployment["parameters"])
    assert set(deployment["parameters"]) <= set(checked)
    assert deployment["work_pool"]["name"] == "control"


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_the_demos_chains_fit_the_tool(name: str) -> None:
    checked = _flow(DEPLOYMENTS["build_and_apply"]).validate_parameters(CHAINS[name])
    assert checked["output_name"] == name
    # Nothing that is applied to may have been trained on.
    assert not set(checked["input_raster"]) & set(checked["apply_raster"])


def test_every_deployment_has_a_pool_and_leaves_that_need_a_gpu_say_so() -> None:
    known = {pool["name"] for pool in pools()["pools"]}
    for name, deployment in DEPLOYMENTS.items():
        assert deployment["work_pool"]["name"] in known, name
        assert ("gpu" in deployment["tags"]) == deployment["work_pool"]["name"].startswith("gpu"), name
    assert set(DEPLOYMENTS) == {
        *TOOLS,
        "export_part",
        "train_model",
        "train_model_on_node",
        "assess_chips",
        "infer_part",
        "infer_calibration",
    }
