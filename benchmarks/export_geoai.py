"""The same chips by geoai (geoai-py on PyPI), run by the interpreter of an environment that holds it.

python benchmarks/export_geoai.py RASTER LABELS OUTPUT FORMAT TILE STRIDE

Prints a JSON object: chips, seconds of the call alone (imports left out), the version.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version

from geoai import export_geotiff_tiles


def main(raster: str, labels: str, output: str, metadata_format: str, tile: str, stride: str) -> None:
    """One export. A format that geoai does not know makes pictures and label rasters without annotations."""
    before, started = os.times(), time.perf_counter()
    done = export_geotiff_tiles(
        in_raster=raster,
        out_folder=output,
        in_class_data=labels,
        tile_size=int(tile),
        stride=int(stride),
        class_value_field="classvalue",
        quiet=True,
        metadata_format=metadata_format,
    )
    wall, after = time.perf_counter() - started, os.times()
    cpu = after.user + after.system - before.user - before.system
    sys.stdout.write(
        json.dumps(
            {"chips": done["total_tiles"], "wall_s": wall, "cpu_s": cpu, "version": version("geoai-py")}
        )
        + "\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
