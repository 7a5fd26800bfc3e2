"""The leaves: what workers run in the pools ``cpu`` and ``gpu``. A leaf never waits for another run.

Each is one part of a plan that lies in the store; its results go to the store, so that a leaf can be
killed and started again at any time.
"""

from __future__ import annotations

from prefect import flow


@flow(name="export_part")
def export_part(plan_uri: str, part: int) -> None:
    """Cut the chips of one part of an export.

    Args:
        plan_uri: the export's plan in the store.
        part: number of the part, from 0.
    """
    from tasks.export.task import run_part

    run_part(plan_uri, part)


@flow(name="train_model")
def train_model(plan_uri: str) -> None:
    """Train one model and publish its package.

    Args:
        plan_uri: the training's plan in the store.
    """
    from tasks.train.task import run_part

    run_part(plan_uri)


@flow(name="train_model_on_node")
def train_model_on_node(plan_uri: str, node: int) -> None:
    """Take part in the training of one model with all processes of this node.

    Args:
        plan_uri: the training's plan in the store.
        node: number of the node, from 0.
    """
    from tasks.train.task import run_node

    run_node(plan_uri, node)


@flow(name="assess_chips")
def assess_chips(plan_uri: str) -> None:
    """Apply one version of a model to the chips of an evaluation set.

    Args:
        plan_uri: the plan in the store.
    """
    from tasks.assess.task import run_chips

    run_chips(plan_uri)


@flow(name="infer_part")
def infer_part(plan_uri: str, part: int) -> None:
    """Compute the shards of one part of an inference.

    Args:
        plan_uri: the inference's plan in the store.
        part: number of the part, from 0.
    """
    from tasks.infer.task import run_part

    run_part(plan_uri, part)


@flow(name="infer_calibration")
def infer_calibration(plan_uri: str) -> None:
    """Time a few tiles of an inference where its parts would run.

    Args:
        plan_uri: the dry run's plan in the store.
    """
    from tasks.infer.task import run_calibration

    run_calibration(plan_uri)
