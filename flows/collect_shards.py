"""Old shards and what killed runs left behind, collected from the store."""

from __future__ import annotations

from typing import Any

from flows._tool import tool
from tasks.infer.parameters_collect import CollectParameters
from tasks.infer.task import collect_garbage


@tool(CollectParameters, run_name="collect what is older than {older_than_days} days")
def collect_shards(parameters: CollectParameters) -> dict[str, Any]:
    """Delete old results of shards, folders of runs that never ended, half uploads; spare runs under way."""
    return collect_garbage(parameters)
