"""What stands on a run's page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.infer.task import summary


def shown(parts: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> str:
    plan = SimpleNamespace(
        tool="classify_pixels",
        rasters=[0],
        package=SimpleNamespace(name="trees", digest="0" * 64, classes=[]),
        pixels=10,
        shards=[0],
    )
    provenance = {"devices": ["cpu"], "parts": parts}
    manifest = SimpleNamespace(provenance=provenance, details={"outputs": outputs, "remarks": []})
    return summary(plan, SimpleNamespace(manifest=manifest))  # type: ignore[arg-type]


def test_the_engine_that_computed_and_why_not_another_stand_on_the_page() -> None:
    engine = {"execution_engine": "OPENVINO", "precision": "FLOAT32", "fell_back": ["OPENVINO is unlike"]}
    lines = shown([{"execution": engine}, {"execution": engine}], []).splitlines()
    assert "Computed on: cpu, by OPENVINO in FLOAT32." in lines
    assert lines.count("> Another execution engine computed: OPENVINO is unlike") == 1


@pytest.mark.parametrize("parts", [[], [{"execution": {}}], [{}]])
def test_functions_without_a_choice_have_no_engine_on_the_page(parts: list[dict[str, Any]]) -> None:
    assert "Computed on: cpu." in shown(parts, []).splitlines()
