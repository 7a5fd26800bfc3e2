"""Deep learning packages: the ``.emd`` and the ``.dlpk``, read, checked, written and trusted."""

from tasks.package.definition import ModelDefinition, parse_definition, read_definition
from tasks.package.dlpk import (
    Package,
    UnpackLimits,
    file_digest,
    open_package,
    package_problems,
    unpacked_package,
    write_dlpk,
)

__all__ = [
    "ModelDefinition",
    "Package",
    "UnpackLimits",
    "file_digest",
    "open_package",
    "package_problems",
    "parse_definition",
    "read_definition",
    "unpacked_package",
    "write_dlpk",
]
