"""Networks as source: the twin has the same keys and gives the same numbers, with torch alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

from tasks.errors import PackageError
from tasks.package.network_source import build_detector, emit_detector, emit_network, load_network

# Imports of everything but torch and torchvision (and what these need) fail in the child.
CHILD = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("timm", "segmentation_models_pytorch", "tasks", "flows"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import importlib.util, torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("network", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
network = module.build()
network.load_state_dict(torch.load(sys.argv[2], weights_only=True), strict=True)
inputs = torch.load(sys.argv[3], weights_only=True)
with torch.inference_mode():
    torch.save([network(item) for item in inputs], sys.argv[4])
"""


def settle_norms(module: nn.Module) -> nn.Module:
    """Running statistics as after some training, so that a forgotten norm would show."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            cast(Tensor, child.running_mean).uniform_(-0.2, 0.2)
            cast(Tensor, child.running_var).uniform_(0.5, 1.5)
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.uniform_(child.bias, -0.2, 0.2)
    return module


def in_child(source: str, state: dict[str, Tensor], inputs: Any, folder: Path) -> Any:
    paths = [folder / name for name in ("network.py", "w.pth", "in.pt", "out.pt")]
    paths[0].write_text(source)
    torch.save(state, paths[1])
    torch.save(inputs, paths[2])
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, *map(str, paths)]
    subprocess.run(command, check=True, cwd=folder, env=environment)
    return torch.load(paths[3], weights_only=True)


def test_a_unet_runs_in_a_process_that_has_torch_only(tmp_path: Path) -> None:
    torch.manual_seed(1)
    narrow = {"decoder_channels": (32, 16, 16, 8, 8)}
    unet = settle_norms(smp.Unet("resnet18", encoder_weights=None, in_channels=4, classes=3, **narrow))
    inputs = [torch.randn(1, 4, 64, 96), torch.randn(2, 4, 32, 64)]
    source = emit_network(unet)
    assert unet.training, "the network must be left as it was"
    found = in_child(source, unet.state_dict(), inputs, tmp_path)
    unet.eval()
    with torch.inference_mode():
        for item, result in zip(inputs, found, strict=True):
            torch.testing.assert_close(result, unet(item), rtol=0, atol=0)


@pytest.mark.parametrize(
    "encoder", ["mobilenet_v2", "timm-tf_efficientnet_lite0", "tu-tf_efficientnet_lite0"]
)
def test_other_encoders_keep_their_keys_and_numbers(encoder: str) -> None:
    torch.manual_seed(2)
    unet = settle_norms(smp.Unet(encoder, encoder_weights=None, in_channels=3, classes=2))
    twin = load_network(emit_network(unet), unet.state_dict())
    assert list(twin.state_dict()) == list(unet.state_dict())
    unet.eval()
    with torch.inference_mode():
        for size in ((64, 64), (32, 96)):
            image = torch.randn(1, 3, *size)
            torch.testing.assert_close(twin(image), unet(image), rtol=0, atol=0)


class Pyramid(nn.Module):
    """A small backbone of two levels."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), FrozenBatchNorm2d(16), nn.ReLU(inplace=True))
        self.merge = FeaturePyramidNetwork([8, 16], 32)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.first(x)
        return cast(dict[str, Tensor], self.merge(OrderedDict([("0", fine), ("1", self.second(fine))])))


@pytest.mark.parametrize("detector", ["FCOS", "RETINANET", "FASTERRCNN"])
def test_a_detector_is_rebuilt_around_its_traced_backbone(detector: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    arguments: dict[str, Any] = {"num_classes": 3, "bands": 4, "anchor_sizes": ((8,), (16,))}
    if detector == "FCOS":
        arguments.update(head_convolutions=1, score_thresh=0.005)
    if detector == "RETINANET":
        arguments.update(aspect_ratios=((0.5, 1.0, 2.0),) * 2, score_thresh=0.005)
    if detector == "FASTERRCNN":
        arguments.update(featmap_names=["0", "1"], box_score_thresh=0.005)
    model = settle_norms(build_detector(Pyramid(), detector, arguments))
    for name, parameter in model.named_parameters():
        if "cls_logits" in name:
            nn.init.normal_(parameter, std=0.3)
    source = emit_detector(cast(nn.Module, model.backbone), detector, arguments)
    inputs = [[torch.randn(4, 64, 64), torch.randn(4, 64, 64)], [torch.randn(4, 96, 128)]]
    if detector == "FCOS":
        results = in_child(source, model.state_dict(), inputs, tmp_path)
    else:
        twin = load_network(source, model.state_dict())
        with torch.inference_mode():
            results = [twin(item) for item in inputs]
    model.eval()
    with torch.inference_mode():
        for item, found in zip(inputs, results, strict=True):
            for mine, theirs in zip(found, model(item), strict=True):
                assert len(theirs["boxes"]) > 5
                for key in ("boxes", "labels", "scores"):
                    torch.testing.assert_close(mine[key], theirs[key], rtol=0, atol=0)


def test_layers_parameters_and_buffers_of_every_kind_travel() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(4))
            self.register_buffer("offset", torch.rand(4))
            self.register_buffer("not_kept", torch.rand(4), persistent=False)
            self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(2)])
            self.again = self.blocks[0]
            self.same = nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect")
            self.groups = nn.GroupNorm(2, 4)
            self.up = nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False)
            self.unused = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> list[Tensor]:
            shift = cast(Tensor, self.offset) + cast(Tensor, self.not_kept)
            x = x * self.scale[:, None, None] + shift[:, None, None]
            for block in self.blocks:
                x = F.relu(block(x), inplace=True)
            x = self.groups(self.same(self.again(x)))
            return [self.up(x), x.mean((2, 3)) + torch.tensor([1.0, 2.0, 3.0, 4.0])]

    torch.manual_seed(4)
    original = Shared().eval()
    keys = list(original.state_dict())
    twin = load_network(emit_network(original), original.state_dict())
    assert sorted(twin.state_dict()) == sorted(keys) == sorted(original.state_dict())
    with torch.inference_mode():
        for size in (8, 13):
            image = torch.randn(2, 4, size, size)
            for mine, theirs in zip(twin(image), original(image), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_path_that_depends_on_the_data_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(PackageError, match="Branching"):
        emit_network(Branching())


torch.fx.wrap("foreign")


def foreign(x: Tensor) -> Tensor:
    return x * 2


def test_functions_from_elsewhere_are_refused() -> None:
    class Foreign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return foreign(x)

    with pytest.raises(PackageError, match="no part of torch"):
        emit_network(Foreign())


def test_weights_of_another_network_do_not_load() -> None:
    source = emit_network(nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(PackageError, match="do not fit"):
        load_network(source, nn.Conv2d(3, 4, 1).state_dict())
