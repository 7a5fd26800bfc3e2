"""What networks of edges and roads are told to learn, and how BDCN's answers add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from tasks.train.models.edges import CascadedEdges
from tasks.train.models.lines import build_line_network, redrawn
from tasks.train.models.options import ConnectedRoadOptions, EdgeOptions, RoadOptions, read_options
from tasks.train.models.roads import NEIGHBOURS, REACHES, RoadNetwork, connections_of

BANDS = ("r", "g", "b")
ENCODER = "timm:lcnet_035"


def test_pixels_are_connected_where_both_are_of_a_road() -> None:
    roads = np.random.default_rng(0).random((2, 9, 7)) < 0.5
    found = connections_of(torch.from_numpy(roads.astype(np.float32))).numpy()
    assert found.shape == (2, 16, 9, 7)
    for number, (reach, (down, right)) in enumerate((r, n) for r in REACHES for n in NEIGHBOURS):
        for row in range(9):
            for col in range(7):
                there = (row + reach * down, col + reach * right)
                inside = 0 <= there[0] < 9 and 0 <= there[1] < 7
                other = roads[:, there[0], there[1]] if inside else np.zeros(2, bool)
                np.testing.assert_array_equal(found[:, number, row, col], roads[:, row, col] & other)


@pytest.mark.parametrize("threshold", [0.76, 0.95])
def test_roads_are_drawn_as_wide_as_the_threshold_says(threshold: float) -> None:
    roads = np.zeros((90, 110), bool)
    roads[30:37, 10:100] = True
    reach = 15.0 * np.sqrt(-2 * np.log(threshold))
    line = np.ones_like(roads)
    line[33, 13:97] = False  # thinning wears the ends down, too
    distance = ndimage.distance_transform_edt(line)
    made = redrawn(roads, threshold)
    # Where the middle line ends is thinning's affair.
    inner = (slice(None), slice(30, 80))
    np.testing.assert_array_equal(made[inner], (distance <= reach)[inner])
    assert not redrawn(np.zeros_like(roads), threshold).any()


def test_answers_of_scales_add_up_and_learn_apart() -> None:
    torch.manual_seed(0)
    options = read_options(EdgeOptions, {"width": "32"})
    network = build_line_network("BDCN_EDGEDETECTOR", ENCODER, options, bands=BANDS, pretrained=False).eval()
    assert isinstance(network, CascadedEdges)
    answers = network.answers(torch.randn(1, 3, 64, 64))
    sides = (answers.shape[1] - 1) // 2
    # The last of the fine-to-coarse answers holds all of them, and teaches only the coarsest resolution;
    # the first of the coarse-to-fine ones the finest.
    for heads, answer, taught in (
        (network.finer, sides - 1, sides - 1),
        (network.coarser, sides, 0),
    ):
        weights = [head.weight for head in heads if isinstance(head, torch.nn.Conv2d)]
        gradients = torch.autograd.grad(answers[:, answer].sum(), weights, retain_graph=True)
        moved = [number for number, gradient in enumerate(gradients) if bool(gradient.abs().sum() > 0)]
        assert (len(weights), moved) == (sides, [taught])
        with torch.no_grad():
            for weight in weights:
                weight.zero_()
        other = network.answers(torch.randn(1, 3, 64, 64))
        biases = [value.item() for name, value in heads.named_parameters() if name.endswith("bias")]
        torch.testing.assert_close(other[:, answer], torch.full((1, 64, 64), sum(biases)))


@pytest.mark.parametrize("model", ["hourglass", "linknet", "unet"])
def test_what_is_told_beside_the_roads_changes_no_answer(model: str) -> None:
    torch.manual_seed(0)
    for kind, model_type in ((RoadOptions, "MULTITASK_ROADEXTRACTOR"), (ConnectedRoadOptions, "CONNECTNET")):
        options = read_options(kind, {"mtl_model": model, "width": "32", "decoder": "16,16,16,16,16"})
        network = build_line_network(model_type, ENCODER, options, bands=BANDS, pretrained=False).eval()
        assert isinstance(network, RoadNetwork)
        picture = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            answers = network.answers(picture)
            torch.testing.assert_close(answers[-1].roads, network(picture))
        assert len(answers) == (2 if model == "hourglass" else 1)
        for answer in answers:
            assert answer.directions.shape == (1, 9, 64, 64)
            assert (answer.connections is not None) is (model_type == "CONNECTNET")
