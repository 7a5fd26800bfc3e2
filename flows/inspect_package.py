"""A package in, its card and all that is wrong with it out."""

from __future__ import annotations

from flows._tool import tool
from tasks.package.parameters import InspectPackageParameters
from tasks.package.task import inspect_package_file


@tool(InspectPackageParameters, run_name="inspect {package}")
def inspect_package(parameters: InspectPackageParameters) -> dict[str, str]:
    """Show a package and all that is wrong with it; fails where something is."""
    return inspect_package_file(parameters)
