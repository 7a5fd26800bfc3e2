"""Training data in, a deep learning package out."""

from __future__ import annotations

from flows._parts import run_parts
from flows._tool import tool
from tasks.train.parameters import TrainParameters
from tasks.train.task import finish_training, is_trained, plan_training


@tool(TrainParameters, run_name="train {output_name}")
def train_deep_learning_model(parameters: TrainParameters) -> dict[str, str]:
    """Train a model on exported chips and put it into a deep learning package."""
    plan = plan_training(parameters)
    if not plan["done"]:
        plan_uri = plan["plan_uri"]
        nodes = [{"plan_uri": plan_uri, "node": node} for node in range(parameters.num_nodes)]
        run_parts(
            "train_model_on_node" if parameters.on_nodes else "train_model",
            run_key=plan["work_key"],
            parts=nodes if parameters.on_nodes else [{"plan_uri": plan_uri}],
            title=f"Train {parameters.output_name}",
            is_done=lambda _part: is_trained(plan_uri),
        )
    return finish_training(plan["plan_uri"])
