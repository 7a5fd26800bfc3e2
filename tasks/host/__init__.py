"""The host: the process that runs an inference function."""

from tasks.host.arguments import FunctionParameter
from tasks.host.classified import ClassifiedObject
from tasks.host.detections import GEOMETRY_TYPES, Detection
from tasks.host.devices import Gpu, visible_gpus
from tasks.host.errors import FunctionFailure
from tasks.host.limits import HostLimits
from tasks.host.process import HostProcess, Operation, Ticket
from tasks.host.report import containment_report

__all__ = [
    "GEOMETRY_TYPES",
    "ClassifiedObject",
    "Detection",
    "FunctionFailure",
    "FunctionParameter",
    "Gpu",
    "HostLimits",
    "HostProcess",
    "Operation",
    "Ticket",
    "containment_report",
    "visible_gpus",
]
