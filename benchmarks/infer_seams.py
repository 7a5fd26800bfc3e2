"""Seams: one network's probabilities put together by a naive loop, by trimming and by blending.

python benchmarks/infer_seams.py --picture docs/seams.png [--steps 250]

A small network is trained for a minute on the western example scene and applied to the south-eastern one. It
normalises over the whole tile, as many networks do, so that it sees more than any padding: neighbouring tiles
disagree. The naive loop puts tiles side by side; the other two go through the engine. Prints a Markdown table
and writes one picture.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import rasterio.features
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tasks.imagery import GridReader, grid_of_collection, inspect_raster
from tasks.infer.blending import ScoreOperator
from tasks.infer.engine import Source, run_shards
from tasks.infer.operators import PixelFormat
from tasks.infer.scores import ChipHost, ScoreLayout, Scoring, blend_margin
from tasks.infer.seams import decided_blocks
from tasks.infer.shards import Footprint, Shard, TileGeometry, plan_shards

SCENES = Path(__file__).resolve().parents[1] / "examples" / "yellowstone_trees"
TILE, PADDING = 128, 16
INNER = TILE - 2 * PADDING
SHOWN, TOP, LEFT = 384, 300, 200
LEVELS = 12


def network() -> torch.nn.Sequential:
    """3 bands in, scores of ground and crown out; normalised over the whole tile."""

    def block(before: int, after: int, dilation: int) -> list[torch.nn.Module]:
        convolution = torch.nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation)
        return [convolution, torch.nn.GroupNorm(1, after), torch.nn.ReLU()]

    layers = [
        torch.nn.AvgPool2d(2),
        *block(3, 16, 1),
        *block(16, 16, 2),
        *block(16, 16, 4),
        *block(16, 16, 1),
    ]
    return torch.nn.Sequential(
        *layers, torch.nn.Conv2d(16, 2, 1), torch.nn.Upsample(scale_factor=2, mode="bilinear")
    )


def trained(steps: int) -> torch.nn.Sequential:
    """The network after some steps on the western scene."""
    torch.manual_seed(0)
    with rasterio.open(SCENES / "west.tif") as scene:
        pixels, transform, bounds = scene.read((1, 2, 3)), scene.transform, scene.bounds
    crowns = geopandas.read_file(SCENES / "trees.gpkg", bbox=tuple(bounds))
    truth = rasterio.features.rasterize(crowns.geometry, pixels.shape[1:], transform=transform)
    net, random = network(), np.random.default_rng(0)
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(steps):
        corners = [(int(random.integers(0, n - TILE)) for n in truth.shape) for _ in range(8)]
        places = [(slice(row, row + TILE), slice(col, col + TILE)) for row, col in corners]
        images = torch.from_numpy(np.stack([pixels[(slice(None), *place)] for place in places])).float() / 255
        wanted = torch.from_numpy(np.stack([truth[place] for place in places])).long()
        loss = torch.nn.functional.cross_entropy(net(images), wanted)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return net.eval()


@dataclass
class Host:
    """Runs the network in this process."""

    net: torch.nn.Sequential
    waiting: deque[NDArray[np.float32]] = field(default_factory=deque)

    def scores(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Probabilities of a batch  # (n, 2, rows, cols)."""
        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(batch)).float() / 255
            made: NDArray[np.float32] = torch.softmax(self.net(images), dim=1).numpy()
        return made

    def submit(
        self,
        operation: str,  # noqa: ARG002 - the engine's signature
        pixels: NDArray[Any],
        mask: Any = None,  # noqa: ARG002
        *,
        tlc: tuple[float, float],  # noqa: ARG002
        shape: tuple[int, int],  # noqa: ARG002
        props: Mapping[str, Any],  # noqa: ARG002
    ) -> int:
        """Compute at once."""
        self.waiting.append(self.scores(pixels))
        return len(self.waiting)

    def result(self, ticket: int) -> NDArray[np.float32]:  # noqa: ARG002
        """The oldest result."""
        return self.waiting.popleft()


@dataclass
class Sink:
    """Results by key."""

    results: dict[str, bytes] = field(default_factory=dict)

    def exists(self, shard: Shard) -> bool:
        """Never before it is put."""
        return shard.key in self.results

    def put(self, shard: Shard, data: bytes) -> bool:
        """Keep it."""
        return self.results.setdefault(shard.key, data) is data


def through_the_engine(host: Host, path: Path, *, blend: bool) -> NDArray[np.uint8]:
    """Probability of crown, 255ths  # (rows, cols)."""
    geometry = TileGeometry(rows=INNER, cols=INNER, padding=PADDING)
    layout = ScoreLayout(values=[1, 2], hidden=[], chip_rows=TILE, chip_cols=TILE, batch=1)
    scoring = Scoring(layout=layout, margin=blend_margin(geometry, layout) if blend else 0, kept=2)
    info = inspect_raster(str(path))
    grid = grid_of_collection([info])
    shards = plan_shards(
        grid=0,
        region=grid.window,
        geometry=geometry,
        tiles=(3, 3),
        footprints=[Footprint(grid.window_of_bounds(info.bounds), info.identity)],
        base_key="seams",
        margin=scoring.margin,
    )
    form, sink = PixelFormat("uint8", 0), Sink()
    operator = ScoreOperator(geometry, form, scoring, {0: (0, 0, *grid.shape)})
    with GridReader([info], grid, (0, 1, 2)) as reader:
        source = Source(grid, reader, pixel_bytes=4, remote=False, props={})
        run_shards(shards, {0: source}, ChipHost(host, geometry, layout), operator, sink, geometry=geometry)
    result = np.zeros(grid.shape, np.uint8)
    made = ((shard, sink.results[shard.key]) for shard in shards)
    for window, decided in decided_blocks(made, shards, grid.window, scoring, form):
        place = window.slices_in(grid.window)
        first = decided.top[0] == 2
        result[place] = np.where(first, decided.probability[0], decided.probability[1])
    return result


def naive(host: Host, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles side by side, filled with 0 at the far edges."""
    rows, cols = (-(-length // INNER) * INNER for length in pixels.shape[1:])
    padded = np.zeros((3, rows, cols), np.uint8)
    padded[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    result = np.zeros((rows, cols), np.uint8)
    for row in range(0, rows, INNER):
        for col in range(0, cols, INNER):
            tile = host.scores(padded[None, :, row : row + INNER, col : col + INNER])
            result[row : row + INNER, col : col + INNER] = np.rint(255 * tile[0, 1])
    return result[: pixels.shape[1], : pixels.shape[2]]


def seam(probability: NDArray[np.uint8]) -> float:
    """Mean step across tile borders against that a few pixels beside them, which a seamless map has at 1."""
    across, beside = [], []
    for values in (probability.astype(float), probability.T.astype(float)):
        for border in range(INNER, values.shape[0] - 8, INNER):
            across.append(np.abs(values[border] - values[border - 1]).mean())
            # An even distance: the network's steps are two pixels wide.
            beside += [np.abs(values[border + by] - values[border + by - 1]).mean() for by in (-24, 24, 40)]
    return float(np.mean(across) / np.mean(beside))


def draw(path: Path, scene: NDArray[np.uint8], maps: Mapping[str, NDArray[np.uint8]]) -> None:
    """The scene and the maps side by side, in few colours."""
    crop = (slice(TOP, TOP + SHOWN), slice(LEFT, LEFT + SHOWN))
    panels = [("imagery", Image.fromarray(np.moveaxis(scene[(slice(None), *crop)], 0, -1)).quantize(48))]
    ramp = np.linspace(0, 1, LEVELS)[:, None]
    colours = ((1 - ramp) * (250, 248, 240) + ramp * (20, 90, 50)).astype(np.uint8)
    for name, values in maps.items():
        steps = (values[crop].astype(int) * LEVELS // 256).clip(0, LEVELS - 1)
        panels.append((name, Image.fromarray(colours[steps])))
    picture = Image.new("RGB", (len(panels) * (SHOWN + 8) - 8, SHOWN + 18), "white")
    pen = ImageDraw.Draw(picture)
    for number, (name, panel) in enumerate(panels):
        left = number * (SHOWN + 8)
        picture.paste(panel.convert("RGB"), (left, 18))
        pen.text((left + 2, 3), name, fill="black")
    picture.quantize(128).save(path, optimize=True)


def main() -> None:
    """Train, apply, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--picture", type=Path, default=None)
    parser.add_argument("--steps", type=int, default=250)
    given = parser.parse_args()
    host, path = Host(trained(given.steps)), SCENES / "southeast.tif"
    with rasterio.open(path) as dataset:
        pixels = dataset.read((1, 2, 3))
    maps = {
        "naive loop": naive(host, pixels),
        "TRIM": through_the_engine(host, path, blend=False),
        "BLEND": through_the_engine(host, path, blend=True),
    }
    even = pixels[:, : pixels.shape[1] // 2 * 2, : pixels.shape[2] // 2 * 2]
    whole = host.scores(even[None])[0, 1] >= 0.5
    sys.stdout.write("| way | step at borders / beside them | classes unlike the whole array's |\n")
    sys.stdout.write("|---|---|---|\n")
    for name, values in maps.items():
        unlike = ((values[: whole.shape[0], : whole.shape[1]] >= 128) != whole).mean()
        sys.stdout.write(f"| {name} | {seam(values):.2f} | {100 * unlike:.1f} % |\n")
    if given.picture is not None:
        draw(given.picture, pixels, maps)


if __name__ == "__main__":
    main()
