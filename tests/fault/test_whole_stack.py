"""Every fault of ``whole_stack`` once: the run ends, starting again gives the same, little is done twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from infra.local import LocalStack
from tests.fault.whole_stack import FAULTS, Site, meet, prepared

if TYPE_CHECKING:
    from tests.conftest import Runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# What Prefect says of a run that nobody started again. A part that is lost is submitted again by its run.
ENDS = {
    "kill-control": {"Crashed"},
    "terminate-control": {"Crashed"},
    "kill-part": {"Completed"},
    "terminate-part": {"Completed"},
    "kill-function": {"Failed"},
    "kill-worker": {"Completed"},
    "orphan-part": {"Completed"},
    "kill-store": {"Completed", "Failed"},
    "kill-prefect": {"Completed"},
    "cancel": {"Cancelled"},
}


@pytest.fixture(scope="module")
def site(stack: LocalStack, runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with prepared(stack, runs, tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_run_outlives_or_ends_and_is_started_again(site: Site, fault: str) -> None:
    outcome = meet(site, fault)
    assert outcome.end in ENDS[fault]
    assert outcome.again == 0
