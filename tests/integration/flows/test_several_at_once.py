"""Several runs at once, where every worker takes one run at a time: all of them end."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import yaml

from infra.local import LocalStack
from infra.local.layout import PROJECT
from tests.fault.whole_stack import prepared

if TYPE_CHECKING:
    from tests.conftest import Runs

FLORIDA = "s3://chipline/imagery/florida_trees"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_control_workers_and_one_worker_per_pool_finish_five_runs(
    stack: LocalStack, runs: Runs, tmp_path: Path
) -> None:
    pools = yaml.safe_load((PROJECT / "deployments" / "pools.yaml").read_text())["pools"]
    workers = {pool["name"]: pool["local_workers"] for pool in pools}
    assert workers["cpu"] == 1
    assert workers["control"] == 2

    with prepared(stack, runs, tmp_path) as site:
        works = [site.work(seconds=0.02, edge=256, parts=4) for _ in range(2)]
        # The same work twice: both runs watch the same runs of its parts.
        started = [work.start() for work in works] + [works[0].start()]
        export = "export_training_data/export_training_data"
        parameters = {
            "input_raster": [f"{FLORIDA}/osbs_029.tif"],
            "input_class_data": f"{FLORIDA}/trees.gpkg",
            "tile_size": 200,
            "stride_size": 200,
        }
        for _ in range(2):
            started.append(runs.start(export, parameters | {"output_location": f"once-{uuid4().hex[:8]}"}))
        for run in started:
            ended = runs.wait(run, timeout_s=600)
            assert ended["state_type"] == "COMPLETED", f"{runs.message(ended)}\n{runs.log(run)}"
        for work in works:
            work.check({})
        # At no time did a worker hold a run that waited for another one in its own pool.
        spans = sorted(
            (run["start_time"], run["end_time"])
            for work in works
            for run in work.part_runs()
            if run["end_time"]
        )
        assert len(spans) >= 8
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans)), "limit 1"
