"""What the boundary to the inference function costs: a function that does nothing, block after block.

    python benchmarks/host_boundary.py [--blocks 2000]

Prints a Markdown row per case: milliseconds per 512 x 512 x 4 tile of bytes, and of a start.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from tasks.host import HostLimits, HostProcess
from tasks.package import Package, read_definition

FUNCTION = """
import numpy as np

class Nothing:
    def initialize(self, **kwargs):
        self.answer = np.zeros((1, 512, 512), np.uint8)

    def getParameterInfo(self):
        return [{"name": "raster", "dataType": "raster"}]

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": self.answer}

    def vectorize(self, **pixelBlocks):
        return {"output_vectors": '{"features": []}'}
"""
DEFINITION = {
    "Framework": "PyTorch",
    "ModelType": "ImageClassification",
    "InferenceFunction": "Nothing.py",
    "ExtractBands": [0, 1, 2, 3],
    "ImageHeight": 512,
    "ImageWidth": 512,
    "Classes": [{"Value": 1, "Name": "thing", "Color": [0, 255, 0]}],
}


def _package(folder: Path) -> Package:
    (folder / "Nothing.py").write_text(FUNCTION)
    text = json.dumps(DEFINITION)
    (folder / "Nothing.emd").write_text(text)
    return Package(folder=folder, definition=read_definition(text), digest="0" * 64, name="Nothing")


def _milliseconds(host: HostProcess, operation: Any, blocks: int, ahead: int, *, whole_mask: bool) -> float:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 512, 512), dtype=np.uint8)
    plane = np.ones((512, 512), np.uint8)
    mask = np.repeat(plane[None], 4, axis=0) if whole_mask else plane
    tickets: deque[int] = deque()
    started = time.perf_counter()
    for _ in range(blocks):
        tickets.append(host.submit(operation, pixels, mask))
        if len(tickets) > ahead:
            host.result(tickets.popleft())
    while tickets:
        host.result(tickets.popleft())
    return (time.perf_counter() - started) / blocks * 1e3


def main() -> None:
    """Runs all cases on this machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--blocks", type=int, default=2000)
    blocks = parser.parse_args().blocks
    limits = HostLimits(start_timeout_s=60, block_timeout_s=60, memory_mb=4000)
    say = sys.stdout.write
    say("| case | ms |\n|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        package = _package(Path(folder))
        starts = []
        for _ in range(5):
            started = time.perf_counter()
            with HostProcess(package, limits=limits):
                starts.append(time.perf_counter() - started)
        say(f"| start, contained, ready for blocks | {min(starts) * 1e3:.0f} |\n")
        with HostProcess(package, limits=limits) as host:
            _milliseconds(host, "updatePixels", 50, 2, whole_mask=False)
            for operation in ("updatePixels", "vectorize"):
                for ahead in (0, 2):
                    for whole_mask in (False, True):
                        cost = min(
                            _milliseconds(host, operation, blocks // 4, ahead, whole_mask=whole_mask)
                            for _ in range(4)
                        )
                        mask = "a mask per band" if whole_mask else "one mask for all bands"
                        say(f"| {operation}, {ahead + 1} in flight, {mask} | {cost:.2f} |\n")


if __name__ == "__main__":
    main()
