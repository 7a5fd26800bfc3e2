"""Weights that were trained elsewhere in, a published package out."""

from __future__ import annotations

from flows._tool import tool
from tasks.package.parameters import PackageModelParameters
from tasks.package.task import pack_foreign_model


@tool(PackageModelParameters, run_name="package {output_name}")
def package_model(parameters: PackageModelParameters) -> dict[str, str]:
    """Make a package of weights, definition and inference function, check and publish it."""
    return pack_foreign_model(parameters)
