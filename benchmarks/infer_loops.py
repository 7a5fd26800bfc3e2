"""The same network over the same raster by other means, for ``infer_engine.py``.

    python benchmarks/infer_loops.py loop|geoai RASTER OUTPUT WEIGHTS TILE PADDING BATCH

``loop``: windows of a tile with a halo, one batch after the other, read by rasterio and written into a
GeoTIFF: what a careful person writes in an hour. ``geoai``: ``semantic_inference_on_geotiff`` of geoai-py, by
the interpreter of an environment that holds it. The weights are those of a U-Net of
segmentation-models-pytorch on a ResNet-18 with two classes. Prints a JSON object: seconds without imports,
version.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import rasterio
import segmentation_models_pytorch as smp
import torch
from rasterio.windows import Window


def main(tool: str, raster: str, output: str, weights: str, tile: str, padding: str, batch: str) -> None:
    """Run one of them."""
    network = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=2)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    started = time.perf_counter()
    if tool == "geoai":
        from geoai.train import semantic_inference_on_geotiff  # type: ignore[import-not-found]

        semantic_inference_on_geotiff(
            network,
            raster,
            output,
            window_size=int(tile),
            overlap=2 * int(padding),
            batch_size=int(batch),
            num_channels=3,
            num_classes=2,
            device=torch.device("cpu"),
            quiet=True,
        )
        used = version("geoai-py")
    else:
        _loop(network, raster, output, int(tile), int(padding), int(batch))
        used = f"(torch {torch.__version__})"
    sys.stdout.write(json.dumps({"wall_s": time.perf_counter() - started, "version": used}) + "\n")


def _loop(network: Any, raster: str, output: str, tile: int, padding: int, batch: int) -> None:
    inner = tile - 2 * padding
    with rasterio.open(raster) as source:
        profile = {
            "driver": "GTiff",
            "height": source.height,
            "width": source.width,
            "count": 1,
            "dtype": "uint8",
            "crs": source.crs,
            "transform": source.transform,
            "compress": "deflate",
            "tiled": True,
        }
        places = [(r, c) for r in range(0, source.height, inner) for c in range(0, source.width, inner)]
        with rasterio.open(output, "w", **profile) as target, torch.inference_mode():
            for start in range(0, len(places), batch):
                chosen = places[start : start + batch]
                pixels = np.stack(
                    [
                        source.read(
                            window=Window(col - padding, row - padding, tile, tile),
                            boundless=True,
                            fill_value=0,
                        )
                        for row, col in chosen
                    ]
                )
                classes = network(torch.from_numpy(pixels).float() / 255).argmax(dim=1).to(torch.uint8)
                middle = classes[:, padding : padding + inner, padding : padding + inner].numpy()
                for (row, col), found in zip(chosen, middle, strict=True):
                    rows, cols = min(inner, source.height - row), min(inner, source.width - col)
                    target.write(found[:rows, :cols], 1, window=Window(col, row, cols, rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
