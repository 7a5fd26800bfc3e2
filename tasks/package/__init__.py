"""Deep learning packages: the ``.emd`` and the ``.dlpk``, read, checked, written and trusted."""

from tasks.package.checks import Problem, UnpackLimits, package_problems
from tasks.package.definition import ModelDefinition, parse_definition, read_definition
from tasks.package.dlpk import (
    Package,
    file_digest,
    open_package,
    unpacked_package,
    write_dlpk,
)

__all__ = [
    "ModelDefinition",
    "Package",
    "Problem",
    "UnpackLimits",
    "file_digest",
    "open_package",
    "package_problems",
    "parse_definition",
    "read_definition",
    "unpacked_package",
    "write_dlpk",
]
