"""Training data and ranges of parameters in, the best package of many trainings out."""

from __future__ import annotations

from prefect.client.orchestration import get_client

from flows._leaf_server import LeafServer
from flows._tool import tool
from flows._trials import Trials
from tasks.train.parameters_search import SearchParameters
from tasks.train.task import begin_search, finish_search, finish_training


@tool(SearchParameters, run_name="search {output_name}")
def search_hyperparameters(parameters: SearchParameters) -> dict[str, str]:
    """Train with many settings, give up those that fall behind, and publish the best package."""
    search, parent_run = begin_search(parameters)
    with get_client(sync_client=True) as client:
        leaf = "train_model_on_node" if parameters.on_nodes else "train_model"
        Trials(LeafServer(client, leaf), search, parent_run).watch()
    found = finish_search(search, parent_run)
    return {**found, **finish_training(found["plan_uri"])}
