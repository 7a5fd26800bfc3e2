"""What is thin, learnt: chips of roads, and the Lightning modules; measured it is as pixels are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tasks.train.datasets import IGNORED, Known, PixelChips
from tasks.train.models.edges import EdgeNetwork, scores_of
from tasks.train.models.lines import directions_of, redrawn
from tasks.train.models.options import ConnectedRoadOptions, RoadOptions
from tasks.train.models.roads import RoadAnswer, RoadNetwork, connections_of
from tasks.train.modules import PixelModule
from tasks.training_data import Chip


class RoadChips(PixelChips):
    """Chips whose roads are drawn anew, all of one width; see :func:`tasks.train.models.lines.redrawn`."""

    def __init__(self, chips: Sequence[Chip], *, gaussian_thresh: float, **options: Any) -> None:
        super().__init__(chips, **options)
        self.gaussian_thresh = gaussian_thresh

    def read_label(self, chip: Chip, known: Known) -> npt.NDArray[np.uint8]:
        labels = super().read_label(chip, known)
        told = labels != IGNORED
        labels[told] = redrawn((labels > 0) & told, self.gaussian_thresh)[told]
        return labels


class EdgeModule(PixelModule):
    """Every answer learns, and that of all together, where edges and the rest weigh the same.

    Source: Xie and Tu, 2015, equations 2 and 4; He et al., 2019, equations 5 and 6.
    """

    def learnt(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        network = cast(EdgeNetwork, self.network)
        answers = network.answers(images.contiguous(memory_format=torch.channels_last)).float()
        known = labels != IGNORED
        edges = (labels > 0) & known
        share = edges.sum() / known.sum().clamp(min=1)
        # In a batch without an edge the rest counts in full.
        weights = torch.where(edges, 1 - share, network.balance * share.clamp(min=1e-3)) * known
        total = weights.sum().clamp(min=1e-6)
        truth = edges.float()[:, None].expand_as(answers)
        entropy = functional.binary_cross_entropy_with_logits(answers, truth, reduction="none")
        # Each answer's mean, and their sum.
        each = (entropy * weights[:, None]).sum(dim=(0, 2, 3)) / total
        return scores_of(answers), (each * each.new_tensor(network.weights)).sum()


class RoadModule(PixelModule):
    """Roads, on them the direction that they run in, and what they connect; every answer learns."""

    def learnt(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        network, options = cast(RoadNetwork, self.network), cast(RoadOptions, self.options)
        answers = network.answers(images.contiguous(memory_format=torch.channels_last))
        known = labels != IGNORED
        roads = (labels > 0) & known
        loss = torch.stack([self.loss(answer.roads, labels) for answer in answers]).sum()
        if options.direction_weight > 0 and bool(roads.any()):
            bins = answers[-1].directions.shape[1]
            wanted = directions_of(roads.float(), bins, options.orient_theta)
            for answer in answers:
                apart = functional.cross_entropy(answer.directions.float(), wanted, reduction="none")
                loss = loss + options.direction_weight * apart[roads].mean()
        if isinstance(options, ConnectedRoadOptions) and options.connectivity_weight > 0:
            loss = loss + options.connectivity_weight * _connection_loss(answers, roads, known)
        return answers[-1].roads, loss


def _connection_loss(answers: Sequence[RoadAnswer], roads: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy of the connections, of pixels that are known; summed over the answers."""
    wanted = connections_of(roads.float())
    counted = known[:, None].expand_as(wanted)
    losses = []
    for answer in answers:
        assert answer.connections is not None  # CONNECTNET's networks tell them
        apart = functional.binary_cross_entropy_with_logits(
            answer.connections.float(), wanted, reduction="none"
        )
        losses.append((apart * counted).sum() / counted.sum().clamp(min=1))
    return torch.stack(losses).sum()


LINE_MODULES: dict[str, type[PixelModule]] = {
    "edges": EdgeModule,
    "roads": RoadModule,
    "connected roads": RoadModule,
}
