"""An export from plan to finish, as the flow's tasks do it, without their server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from watched import Clock


def exported(
    folder: Path, metadata_format: str, tile: int, stride: int, *, processes: int = 0
) -> dict[str, Any]:
    """Every position of ``folder``'s scene.tif with its labels.gpkg, as chips in the store of the settings.

    Args:
        processes: that cut; 0: one for each usable core.

    Returns:
        chips, bytes, ``phases`` in seconds (starting the processes is in the first two), wall_s and cpu_s.
    """
    from tasks.export.crew import Crew
    from tasks.export.cut import cut_part
    from tasks.export.finish import finish
    from tasks.export.inputs import inspect_inputs
    from tasks.export.parameters import ExportParameters
    from tasks.export.plan import make_plan
    from tasks.store import ObjectStore

    parameters = ExportParameters.model_validate(
        {
            "input_raster": [str(folder / "scene.tif")],
            "input_class_data": str(folder / "labels.gpkg"),
            "output_location": metadata_format,
            "metadata_format": metadata_format,
            "tile_size": tile,
            "stride_size": stride,
            "output_nofeature_tiles": "ALL_TILES",
        }
    )
    store, whole, phases = ObjectStore(), Clock(), {}
    clock = Clock()
    with Crew(processes or None) as crew:
        plan = make_plan(store, parameters, inspect_inputs(parameters))
        phases["plan"], clock = clock.read()["wall_s"], Clock()
        for part in range(len(plan.parts)):
            cut_part(store, plan, part, crew=crew)
    phases["cut"], clock = clock.read()["wall_s"], Clock()
    manifest = finish(store, plan, {}).manifest
    phases["finish"] = clock.read()["wall_s"]
    return {"chips": plan.chips, "bytes": manifest.bytes, "phases": phases, **whole.read()}
