"""The product's steps one after the other, as the flows' tasks do them, without a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def settle_in(folder: Path, *readable: Path) -> None:
    """Puts store and cache below a folder, for this process; inputs may lie there or in ``readable``."""
    roots = ", ".join(f'"{root}"' for root in (folder, *readable))
    os.environ["CHIPLINE_ROOT"] = f"{folder}/store"
    os.environ["CHIPLINE_CACHE"] = f"{folder}/cache"
    os.environ["CHIPLINE_ALLOWED_ROOTS"] = f"[{roots}]"


def exported(**values: Any) -> str:
    """The folder of the chips.

    Args:
        values: parameters of ``export_training_data``; all tiles are kept.
    """
    from tasks.export.cut import cut_part
    from tasks.export.finish import finish
    from tasks.export.inputs import inspect_inputs
    from tasks.export.parameters import ExportParameters
    from tasks.export.plan import make_plan, save_plan
    from tasks.store import ObjectStore

    parameters = ExportParameters.model_validate({"output_nofeature_tiles": "ALL_TILES", **values})
    store = ObjectStore()
    plan = make_plan(store, parameters, inspect_inputs(parameters))
    save_plan(store, plan)
    for part in range(len(plan.parts)):
        cut_part(store, plan, part)
    finish(store, plan, {})
    return plan.folder_uri


def trained(data: str, arguments: dict[str, str], **values: Any) -> Any:
    """The record of a training that nothing tracks and that does not stop before its time.

    Args:
        data: folder of the chips.
        arguments: of the model, on top of the preset ``light``.
        values: parameters of ``train_deep_learning_model``.
    """
    from tasks.store import ObjectStore
    from tasks.tracking import Tracker
    from tasks.train.parameters import TrainParameters
    from tasks.train.plan import make_plan, save_plan
    from tasks.train.work import run_training

    given = [{"name": name, "value": value} for name, value in {"preset": "light", **arguments}.items()]
    parameters = TrainParameters.model_validate(
        {"in_folder": [data], "model_arguments": given, "stop_training": False, **values}
    )
    store = ObjectStore()
    uri = save_plan(store, make_plan(store, parameters))
    return run_training(store, uri, start=lambda _plan: Tracker.disabled(), progress=lambda *_: None)


def inferred(parameters: Any) -> str:
    """The address of what a tool of inference makes.

    Args:
        parameters: of one of ``tasks.infer.parameters``.
    """
    from tasks.infer.finish import finish
    from tasks.infer.part import compute_part, save_plan
    from tasks.infer.prepare import prepare
    from tasks.infer.task import addresses
    from tasks.package.fetch import fetch_package
    from tasks.store import ObjectStore

    store = ObjectStore()
    plan = prepare(parameters, store)
    save_plan(store, plan)
    package = fetch_package(plan.package.uri, store)
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=package)
    return addresses(plan, finish(store, plan, {}))["uri"]
