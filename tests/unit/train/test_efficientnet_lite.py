"""The encoder is EfficientNet-Lite0, and all of its ImageNet weights arrive."""

from __future__ import annotations

from typing import Any, cast

import pytest
import timm
import torch

from tasks.train.models.efficientnet_lite import (
    EfficientNetLite0,
    imagenet_state,
    installed_state,
    pretrained_weights_file,
)


@pytest.fixture(scope="module")
def source() -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(
        pretrained_weights_file(), map_location="cpu", weights_only=True
    )
    return weights


def test_every_tensor_of_the_encoder_comes_from_the_file(source: dict[str, torch.Tensor]) -> None:
    network = EfficientNetLite0()
    state = imagenet_state(source, network)
    assert set(state) == set(network.state_dict())
    used = {tensor.data_ptr() for tensor in state.values() if tensor.numel()}
    left = [name for name, tensor in source.items() if tensor.numel() and tensor.data_ptr() not in used]
    # Only the classifier and its last convolution stay behind.
    assert all(name.startswith(("_conv_head", "_bn1.", "_fc")) for name in left)


def test_the_features_are_those_of_timm_with_the_same_weights(source: dict[str, torch.Tensor]) -> None:
    # timm's port of the TensorFlow network, with padding computed at run time, is the oracle. Both lists of
    # tensors are in the order of the computation.
    oracle = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = list(oracle.state_dict())
    assert len(names) == len(source)
    oracle.load_state_dict(dict(zip(names, source.values(), strict=True)))
    oracle.eval()
    network = EfficientNetLite0()
    network.load_state_dict(installed_state(network))
    network.eval()
    image = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = network(image)
        expected = cast(Any, oracle).forward_intermediates(image, intermediates_only=True)
    assert [tuple(f.shape) for f in features[1:]] == [tuple(f.shape) for f in expected]
    for ours, theirs in zip(features[1:], expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_depth_leaves_out_the_coarse_stages() -> None:
    network = EfficientNetLite0(depth=3)
    network.load_state_dict(installed_state(network))
    assert network.out_channels == [3, 16, 24, 40]
    features = network(torch.zeros(1, 3, 64, 64))
    assert [feature.shape[-1] for feature in features] == [64, 32, 16, 8]


def test_strides_become_dilation() -> None:
    dense = EfficientNetLite0(output_stride=16)
    dense.load_state_dict(EfficientNetLite0().state_dict())
    features = dense(torch.zeros(1, 3, 64, 64))
    assert [feature.shape[-1] for feature in features] == [64, 32, 16, 8, 4, 4]


def test_other_bands_than_built_for_are_refused() -> None:
    with pytest.raises(ValueError, match="3 bands"):
        EfficientNetLite0().set_in_channels(4)
