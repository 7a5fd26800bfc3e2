"""A person starts a run with Prefect's form: log in, fill in, submit, see it complete."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from playwright.sync_api import Locator, Page, expect

from infra.local import LocalStack

if TYPE_CHECKING:
    from tests.conftest import Runs

EXPORT = "export_training_data/export_training_data"


def _field(page: Page, name: str) -> Locator:
    """The input of a parameter; its label says nothing or ``(Optional)`` after the name."""
    label = page.locator(".schema-form-property__label").filter(
        has_text=re.compile(rf"^\s*{name}( \(Optional\))?\s*$")
    )
    return page.locator(".schema-form-property").filter(has=label).locator("input, textarea").first


def _submit(page: Page, runs: Runs) -> dict[str, Any]:
    """Press the button, and again as a person would where the server was too busy to take it."""
    before = {run["id"] for run in runs.latest_of(EXPORT)}
    refused: list[str] = []
    page.on(
        "response", lambda answer: refused.append(f"{answer.status} {answer.url}") if not answer.ok else None
    )
    for _attempt in range(4):
        page.get_by_role("button", name="Submit").click()
        end = time.monotonic() + 15
        while time.monotonic() < end:
            new = [run for run in runs.latest_of(EXPORT) if run["id"] not in before]
            if new:
                return new[0]
            page.wait_for_timeout(500)
    raise TimeoutError(f"no run was made; the server refused {refused}; the page is {page.url}")


def test_the_form_starts_a_run_that_completes(stack: LocalStack, runs: Runs, page: Page) -> None:
    deployment, output = runs.deployment(EXPORT)["id"], f"form-{uuid4().hex[:8]}"
    page.goto(f"{stack.layout.prefect_url}/deployments/deployment/{deployment}/run")
    page.wait_for_url(re.compile("login"))
    page.locator("input").first.fill(stack.secrets.prefect_auth_string)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"^(?!.*login)"))

    page.goto(f"{stack.layout.prefect_url}/deployments/deployment/{deployment}/run")
    # The form is made from the tool's parameter model: its descriptions, its defaults, our samples.
    expect(page.get_by_text("Width of a chip, in pixels; also its height")).to_be_visible()
    assert _field(page, "stride_size").input_value() == "128"
    assert _field(page, "input_raster").input_value() == "s3://chipline/imagery/yellowstone_trees/west.tif"

    for name, value in {
        "input_raster": "s3://chipline/imagery/florida_trees/osbs_029.tif",
        "input_class_data": "s3://chipline/imagery/florida_trees/trees.gpkg",
        "output_location": output,
        "tile_size": "200",
        "stride_size": "200",
    }.items():
        _field(page, name).fill(value)
    page.keyboard.press("Tab")  # the form takes a value over when its field is left
    made = _submit(page, runs)
    assert made["parameters"]["output_location"] == output
    assert made["parameters"]["tile_size"] == 200
    finished = runs.wait(made["id"])
    assert finished["state_type"] == "COMPLETED", runs.log(made["id"])

    page.goto(f"{stack.layout.prefect_url}/runs/flow-run/{made['id']}")
    expect(page.get_by_text("Completed").first).to_be_visible()
