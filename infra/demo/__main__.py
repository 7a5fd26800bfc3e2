"""The demo: boots the stack, runs two chains through their deployments, says where to look.

A second run finds everything done and says so within a minute; another ``--seed`` trains anew.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from infra.demo.chains import CHAINS, FLORIDA, result_kind
from infra.local.errors import StackError
from infra.local.stack import LocalStack

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_AT_MOST_S = 20 * 60


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit code is 0 when every run completed."""
    parser = argparse.ArgumentParser(prog="python -m infra.demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the models; another one trains anew")
    chosen = parser.parse_args(arguments)
    begun = time.monotonic()
    stack = LocalStack(say=_say)
    _say("Chipline's demo: tree crowns in aerial imagery that the models never saw.\n")
    try:
        stack.up()
    except StackError as error:
        sys.stderr.write(f"chipline: {error}\n")
        return 1
    os.environ.update(stack.environment("admin"))
    good = _run_chains(chosen.seed)
    if good:
        from infra.demo.summary import summary

        _say("\n" + summary(stack))
    _say(f"\nThe demo took {(time.monotonic() - begun) / 60:.1f} minutes. The stack is still up:")
    _say(stack.summary())
    _say("  `make down` stops it.")
    return 0 if good else 1


def _run_chains(seed: int) -> bool:
    # Prefect reads its settings when it is imported, so not before the environment is set.
    from prefect.client.orchestration import get_client

    from infra.demo.follow import Follower

    started = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        follower = Follower(client, started, _say)
        chains = {
            _start("build_and_apply", {**parameters, "seed": seed}): name
            for name, parameters in CHAINS.items()
        }
        good = _judge(follower.wait(chains, timeout_s=_AT_MOST_S))
        if good:
            abroad = {
                _start("compute_accuracy", _florida(name)): f"{name}_florida" for name in chains.values()
            }
            good = _judge(follower.wait(abroad, timeout_s=_AT_MOST_S))
    return good


def _florida(name: str) -> dict[str, object]:
    """Score the same results in Florida, where no model was trained."""
    from tasks.store import ObjectStore, current

    kind = result_kind(name)
    field = "classified_raster" if kind == "classify_pixels" else "detected_features"
    return {
        # The deployment's sample values stand for what is not given.
        "detected_features": [],
        "classified_raster": [],
        field: [str(current(ObjectStore(), f"outputs/{kind}", name)).rstrip("/") + "/"],
        "ground_truth_features": f"{FLORIDA}/trees.gpkg",
        "extent_rasters": [f"{FLORIDA}/osbs_029.tif"],
        "out_accuracy_table": f"{name}_florida",
        "min_iou": 0.4,
    }


def _start(tool: str, parameters: dict[str, object]) -> UUID:
    from prefect.client.schemas.objects import FlowRun
    from prefect.deployments import run_deployment

    run = run_deployment(f"{tool}/{tool}", parameters=parameters, timeout=0, as_subflow=False)
    assert isinstance(run, FlowRun)  # not awaitable where no event loop runs
    return run.id


def _judge(runs: dict[UUID, FlowRun]) -> bool:
    good = True
    for run in runs.values():
        state = run.state
        if state is None or not state.is_completed():
            good = False
            told = f"{state.name}: {state.message}" if state else "never started"
            sys.stderr.write(f"chipline: {run.name}: {told}\n")
    return good


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
