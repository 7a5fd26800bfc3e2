"""What a plain torchvision script reaches on the same chips in the same time: the row beside ours.

    python benchmarks/train_plain.py --model FCOS --minutes 5 [--area south] [--backbone efficientnet_lite0]

Chips, held-out area and scoring are those of train_accuracy.py. The rest is what torchvision's reference
script for detection does: its own FCOS or RetinaNet at its defaults (five levels from stride 8, its anchors
and losses), SGD with momentum 0.9, weight decay 0.0001 and a learning rate of 0.02 per 16 pictures, warmed up
over the first pass and cut to a tenth after two thirds and eight ninths of the time; pictures mirrored with a
chance of a half; whole chips, no crops. The test scenes are cut into tiles that overlap by half, and all the
boxes of a scene go through one suppression.

Backbones: efficientnet_lite0 has the ImageNet weights that ours starts from; resnet18 and resnet50 have
torchvision's where they lie in torch's cache (``--imagenet``), else random ones. DeepForest is not installed
here: it is a RetinaNet with resnet50 that was trained on trees before, which is another question.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from steps import settle_in
from train_accuracy import SCENES, areas, export, score

_RATE_PER_PICTURE = 0.02 / 16
_DROPS = (2 / 3, 8 / 9)  # of the time
_OVERLAP = (
    0.5  # IoU above which the weaker of two boxes goes, torchvision's default for these models is 0.5 to 0.6
)
_LEAST_SCORE = 0.05


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["FCOS", "RETINANET"], required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of training; 0: one step")
    parser.add_argument("--area", choices=["south", "north", "east"], default="south")
    parser.add_argument(
        "--backbone", choices=["efficientnet_lite0", "resnet18", "resnet50"], default="efficientnet_lite0"
    )
    parser.add_argument(
        "--imagenet", action="store_true", help="ImageNet weights for a resnet, from the cache"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tile-size", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="minutes of processor time: with one thread those of an idle core, whatever else runs",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processor", choices=["CPU", "GPU"], default="CPU")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="train-plain-") as folder:
        settle_in(Path(folder), SCENES)
        _run(Path(folder), chosen)


def _run(folder: Path, chosen: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    train_rasters, test_rasters = areas(folder, chosen.area)
    samples = _samples(export(train_rasters, chosen, "PASCAL_VOC_rectangles"))
    device = torch.device("cuda" if chosen.processor == "GPU" else "cpu")
    network = _network(chosen).to(device)
    steps, seconds = _train(network, samples, chosen, device)
    layer = _detect(network, test_rasters, chosen, device, folder / "found.parquet")
    row = score(layer, test_rasters, pixels=False)
    interval = [row.get(f"AP_{end}") for end in ("Low", "High")]
    sys.stdout.write(
        f"| plain torchvision {chosen.model}, {chosen.backbone} | {chosen.area} | {chosen.minutes:g} min, "
        f"{chosen.threads} threads, {steps} steps of {chosen.batch_size} | "
        f"{steps * chosen.batch_size / max(seconds, 1e-9):.1f} chips/s | "
        f"AP {row['AP']:.3f} {interval} | F1 {row['F1_Score']:.3f} | load {os.getloadavg()[1]:.1f} |\n{row}\n"
    )


def _samples(folder: str) -> list[tuple[Any, Any]]:
    """Pictures (3, rows, cols) from 0 to 1 and their boxes, in memory."""
    import torch

    from tasks.training_data import open_training_data, read_boxes, read_chip_image

    found = []
    for chip in open_training_data(Path(folder)).chips:
        image = torch.from_numpy(read_chip_image(chip)[:3].astype(np.float32) / 255)
        corners = [box[1:] for box in read_boxes(chip)]
        boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
        found.append((image, {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}))
    return found


def _network(chosen: argparse.Namespace) -> Any:
    from torchvision.models import detection
    from torchvision.models.detection import anchor_utils
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    if chosen.backbone == "efficientnet_lite0":
        backbone = _lite_pyramid()
    else:
        backbone = resnet_fpn_backbone(
            backbone_name=chosen.backbone,
            weights="IMAGENET1K_V1" if chosen.imagenet else None,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
            trainable_layers=5,
        )
    # No enlarging to 800 pixels: chips and tiles are seen as they are, by ours too.
    size = {"min_size": chosen.tile_size, "max_size": chosen.tile_size}
    if chosen.model == "FCOS":
        return detection.FCOS(backbone, num_classes=2, **size)
    return detection.RetinaNet(
        backbone,
        num_classes=2,
        anchor_generator=anchor_utils.AnchorGenerator(
            tuple(
                (edge, int(edge * 2 ** (1 / 3)), int(edge * 2 ** (2 / 3))) for edge in (32, 64, 128, 256, 512)
            ),
            ((0.5, 1.0, 2.0),) * 5,
        ),
        **size,
    )


def _lite_pyramid() -> Any:
    """EfficientNet-Lite0 with its installed ImageNet weights below torchvision's own feature pyramid."""
    from collections import OrderedDict

    from torch import nn
    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

    from tasks.train.models.encoders import build_encoder

    encoder = build_encoder("EFFICIENTNET_LITE0", bands=["red", "green", "blue"], depth=5, pretrained=True)
    channels = [int(size) for size in encoder.out_channels[3:]]

    class Pyramid(nn.Module):
        out_channels = 256

        def __init__(self) -> None:
            super().__init__()
            self.body = encoder
            self.fpn = FeaturePyramidNetwork(channels, 256, LastLevelP6P7(256, 256))

        def forward(self, images: Any) -> Any:
            return self.fpn(OrderedDict((str(i), f) for i, f in enumerate(self.body(images)[3:])))

    return Pyramid()


def _train(network: Any, samples: list[tuple[Any, Any]], chosen: argparse.Namespace, device: Any) -> Any:
    """Steps done and seconds taken."""
    import torch

    rate = _RATE_PER_PICTURE * chosen.batch_size
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    random = np.random.default_rng(chosen.seed)
    network.train()
    clock = time.process_time if chosen.processor_time else time.monotonic
    started, limit, steps = clock(), 60 * chosen.minutes, 0
    warm_up = max(1, len(samples) // chosen.batch_size)
    order: list[int] = []
    while steps == 0 or clock() - started < limit:
        if len(order) < chosen.batch_size:
            order = random.permutation(len(samples)).tolist()
        batch = [_mirrored(*samples[order.pop()], random) for _ in range(min(chosen.batch_size, len(order)))]
        share = (clock() - started) / limit if limit else 0.0
        drop = 0.1 ** sum(share > at for at in _DROPS)
        for group in optimizer.param_groups:
            group["lr"] = rate * drop * min(1.0, 0.001 + steps / warm_up)
        images = [image.to(device) for image, _ in batch]
        targets = [{name: part.to(device) for name, part in target.items()} for _, target in batch]
        loss = sum(network(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    return steps, clock() - started


def _mirrored(image: Any, target: Any, random: Any) -> tuple[Any, Any]:
    if random.random() < 0.5:
        return image, target
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[-1] - target["boxes"][:, [2, 0]]
    return image.flip(-1), {**target, "boxes": boxes}


def _detect(network: Any, rasters: list[str], chosen: argparse.Namespace, device: Any, layer: Path) -> str:
    """The boxes of all tiles of all scenes, after one suppression per scene, as a layer."""
    import geopandas
    import rasterio
    import shapely
    import torch
    from torchvision.ops import nms

    network.eval()
    size, frames, crs = chosen.tile_size, [], None
    for raster in rasters:
        with rasterio.open(raster) as scene:
            pixels, transform, crs = (
                scene.read([1, 2, 3]).astype(np.float32) / 255,
                scene.transform,
                scene.crs,
            )
        rows, cols = pixels.shape[1:]
        boxes, scores = [torch.zeros(0, 4)], [torch.zeros(0)]
        for top in _starts(rows, size):
            for left in _starts(cols, size):
                tile = torch.from_numpy(pixels[:, top : top + size, left : left + size].copy()).to(device)
                with torch.inference_mode():
                    found = network([tile])[0]
                sure = found["scores"] >= _LEAST_SCORE
                shift = torch.tensor([left, top, left, top])
                boxes.append(found["boxes"][sure].cpu() + shift)
                scores.append(found["scores"][sure].cpu())
        every, sureness = torch.cat(boxes), torch.cat(scores)
        kept = nms(every, sureness, _OVERLAP)
        corners = every[kept].double().numpy()
        across, down = corners[:, 0::2], corners[:, 1::2]
        x = transform.a * across + transform.b * down + transform.c
        y = transform.d * across + transform.e * down + transform.f
        shapes = shapely.box(x.min(axis=1), y.min(axis=1), x.max(axis=1), y.max(axis=1)) if len(x) else []
        frames.append((shapes, sureness[kept].double().numpy()))
    geometry = [shape for shapes, _ in frames for shape in shapes]
    values = {"Class": ["Tree"] * len(geometry), "Confidence": np.concatenate([part for _, part in frames])}
    geopandas.GeoDataFrame(values, geometry=geometry, crs=crs).to_parquet(layer)
    return str(layer)


def _starts(length: int, size: int) -> list[int]:
    """First pixels of tiles that overlap by half and cover everything."""
    last = max(length - size, 0)
    return sorted({*range(0, last, size // 2), last})


if __name__ == "__main__":
    main()
