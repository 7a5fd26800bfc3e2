"""The little of ``arcpy`` that inference functions touch, for an interpreter without ArcGIS.

Functions read and write ``arcpy.env.processorType`` and ``arcpy.env.gpuId``, now and then say something
with ``AddMessage``; nothing else is offered (docs/formats/python-raster-function.md). Standard library only.
"""

from __future__ import annotations

import sys
import tempfile
import types
from typing import Any

_MODULE_NAME = "arcpy"


class _Environment:
    """``arcpy.env``: takes any attribute, knows the ones that functions read."""

    def __init__(self, processor_type: str, gpu_id: int) -> None:
        self.processorType = processor_type
        self.gpuId = gpu_id
        self.autoCancelling = False
        self.parallelProcessingFactor: Any = None
        self.overwriteOutput = True
        self.addOutputsToMap = False
        # Written and asked by functions made from templates; the engine decides all of these itself.
        self.workspace = self.scratchWorkspace = self.scratchFolder = tempfile.gettempdir()
        for name in ("cellSize", "extent", "mask", "snapRaster", "outputCoordinateSystem", "nodata"):
            setattr(self, name, None)


def make_arcpy(processor_type: str, gpu_id: int) -> types.ModuleType:
    """A module named ``arcpy``.

    Args:
        processor_type: "CPU" or "GPU", as the caller asked.
        gpu_id: number of the GPU among those the process sees; -1 on a CPU.
    """
    module = types.ModuleType(_MODULE_NAME, "Stand-in for arcpy, by Chipline.")
    module.__dict__.update(
        env=_Environment(processor_type, gpu_id),
        AddMessage=lambda message: _say("", message),
        AddWarning=lambda message: _say("WARNING: ", message),
        AddError=lambda message: _say("ERROR: ", message),
        AddIDMessage=lambda kind, number, *rest: _say(f"{kind} {number}: ", " ".join(map(str, rest))),
        AddReturnMessage=_nothing,
        GetMessages=_no_text,
        SetProgressor=_nothing,
        SetProgressorLabel=_nothing,
        SetProgressorPosition=_nothing,
        ResetProgressor=_nothing,
        ExecuteError=type("ExecuteError", (Exception,), {}),
        ExecuteWarning=type("ExecuteWarning", (Exception,), {}),
        __getattr__=_missing,
    )
    return module


def _say(prefix: str, message: object) -> None:
    sys.stdout.write(f"{prefix}{message}\n")


def _nothing(*_arguments: object, **_named: object) -> None:
    """Progress is the engine's business."""


def _no_text(*_arguments: object) -> str:
    return ""


def _missing(name: str) -> Any:
    raise AttributeError(
        f"arcpy.{name} is not there: this function runs outside ArcGIS, where arcpy offers "
        "env.processorType, env.gpuId, AddMessage, AddWarning, AddError and SetProgressor only"
    )
