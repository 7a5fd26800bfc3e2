"""Weights of encoders from files: whatever the file calls its layers, and never with code."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks.errors import BadInputError, NotFoundError
from tasks.settings import settings
from tasks.store import ObjectStore
from tasks.train.models import encoders
from tasks.train.models.encoder_weights import EncoderStart, read_state, state_for
from tasks.train.models.encoders import build_encoder, start_encoder
from tasks.train.origins import find_encoder, installed_file, local_encoder
from tests.unit.train.test_options import parameters

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def encoder(backbone: str = "RESNET18", bands: int = 3) -> nn.Module:
    names = ["red", "green", "blue", "nir", "swir"][:bands]
    return build_encoder(backbone, bands=names, depth=5, pretrained=False).eval()


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "form",
    [
        prefixed(""),
        prefixed("module.encoder."),
        lambda state: {"state_dict": prefixed("model.")(state), "epoch": 3},
        lambda state: {
            **prefixed("encoder.")(state),
            "decoder.weight": torch.ones(3),
            "decoder.bias": torch.ones(1),
        },
    ],
)
def test_torchvisions_file_is_taken_under_any_prefix(
    form: Callable[[dict[str, Tensor]], Any], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    source = torchvision.models.resnet18(weights=None).eval()
    torch.save(form(source.state_dict()), tmp_path / "w.pth")
    ours = encoder()
    told = start_encoder(
        ours,
        "RESNET18",
        bands=["a", "b", "c"],
        scheme="RANDOM",
        start=EncoderStart(tmp_path / "w.pth", "s3://b/w.pth"),
    )
    assert "s3://b/w.pth" in told
    with torch.inference_mode():
        x = source.maxpool(source.relu(source.bn1(source.conv1(IMAGE))))
        expected = source.layer4(source.layer3(source.layer2(source.layer1(x))))
        torch.testing.assert_close(ours(IMAGE)[-1], expected)


def test_timms_file_is_taken_though_it_calls_its_stages_otherwise(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source: Any = timm.create_model("convnext_atto", pretrained=False).eval()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    ours = encoder("timm:convnext_atto")
    start = EncoderStart(tmp_path / "w.safetensors", "w")
    start_encoder(ours, "timm:convnext_atto", bands=["a", "b", "c"], scheme="RANDOM", start=start)
    with torch.inference_mode():
        expected = source.forward_intermediates(IMAGE, intermediates_only=True, norm=False)
        for mine, theirs in zip(ours(IMAGE)[2:], expected, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_other_bands_get_their_first_layer_by_the_scheme(tmp_path: Path) -> None:
    source = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(source, tmp_path / "w.pth")
    ours = encoder(bands=5)
    fresh = ours.state_dict()["conv1.weight"].clone()
    bands = ["red", "green", "blue", "nir", "swir"]
    start = EncoderStart(tmp_path / "w.pth", "w")
    start_encoder(ours, "RESNET18", bands=bands, scheme="RANDOM", start=start)
    assert torch.equal(ours.state_dict()["conv1.weight"][:, :3], source["conv1.weight"])
    assert torch.equal(ours.state_dict()["conv1.weight"][:, 3:], fresh[:, 3:])
    # A file that is of these very bands is taken as it is.
    own = encoder(bands=5).state_dict()
    torch.save(own, tmp_path / "five.pth")
    start_encoder(
        ours, "RESNET18", bands=bands, scheme="RANDOM", start=EncoderStart(tmp_path / "five.pth", "w")
    )
    assert torch.equal(ours.state_dict()["conv1.weight"], own["conv1.weight"])


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (7,)


def test_files_that_do_not_fit_are_refused_and_no_code_runs(tmp_path: Path) -> None:
    ours = encoder()
    other = ours.state_dict()
    with pytest.raises(BadInputError, match="missing: layer4"):
        state_for(ours, {k: v for k, v in other.items() if not k.startswith("layer4")}, "x.pth")
    wide = {
        k: v.repeat_interleave(2, 0) if k.startswith("layer2") and v.dim() else v for k, v in other.items()
    }
    with pytest.raises(BadInputError, match=r"other shapes than the encoder: layer2\.0"):
        state_for(ours, wide, "x.pth")
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"conv1.weight": Malice()}))
    with pytest.raises(BadInputError, match="pickled code"):
        read_state(evil, "evil.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(BadInputError, match="no file of safetensors"):
        read_state(tmp_path / "bad.safetensors", "bad")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(BadInputError, match="no tensors"):
        read_state(tmp_path / "empty.pth", "empty")


def test_a_hub_that_cannot_be_reached_is_an_error_unless_random_weights_are_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(_: str) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(encoders, "_fetched", unreachable)
    ours = encoder()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    settled: dict[str, Any] = {"bands": ["a", "b", "c"], "scheme": "RANDOM"}
    with pytest.raises(BadInputError, match=r"no route to host.*encoder_weights"):
        start_encoder(ours, "RESNET18", start=EncoderStart(), **settled)
    told = start_encoder(ours, "RESNET18", start=EncoderStart(or_random=True), **settled)
    assert told.startswith("random weights: those of RESNET18 could not be fetched")
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_the_hub_is_named_with_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_fetched", lambda _: encoder())
    told = start_encoder(encoder(), "RESNET18", bands=["a", "b", "c"], scheme="RANDOM", start=EncoderStart())
    assert told == "ImageNet weights from the hub (smp-hub/resnet18.imagenet)"


def test_addresses_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
    settings.cache_clear()
    store = ObjectStore()
    package = tmp_path / "carrier"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('nothing of it runs')")
    (package / "w.pth").write_bytes(b"one")
    monkeypatch.syspath_prepend(str(tmp_path))
    for given in (str(package / "w.pth"), "package:carrier/w.pth"):
        origin = find_encoder(store, parameters(encoder_weights=given))
        assert origin is not None
        assert local_encoder(store, origin, tmp_path).read_bytes() == b"one"
    assert find_encoder(store, parameters()) is None
    (package / "w.pth").write_bytes(b"two")
    assert origin is not None
    with pytest.raises(BadInputError, match="not those that the training was planned with"):
        local_encoder(store, origin, tmp_path)
    for given in ("package:carrier", "package:/etc/passwd", "package:carrier/../x"):
        with pytest.raises(BadInputError, match="package:NAME/PATH"):
            installed_file(given)
    with pytest.raises(NotFoundError, match="not installed"):
        installed_file("package:no_such_package_here/w.pth")
    with pytest.raises(BadInputError, match="allowed"):
        find_encoder(store, parameters(encoder_weights="/etc/passwd"))
    with pytest.raises(NotFoundError):
        find_encoder(store, parameters(encoder_weights=str(tmp_path / "none.pth")))
    settings.cache_clear()
