"""A package that someone brings in, published under its digest out."""

from __future__ import annotations

from flows._tool import tool
from tasks.package.parameters import AddPackageParameters
from tasks.package.task import add_brought_package


@tool(AddPackageParameters, run_name="add package {package}")
def add_package(parameters: AddPackageParameters) -> dict[str, str]:
    """Check a package, show it, publish it under its digest and, where you may, approve it."""
    return add_brought_package(parameters)
