"""Lightning modules of what is thin: how edges and roads are learnt; measured they are as pixels are."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from tasks.train.datasets import IGNORED
from tasks.train.models.lines import EdgeNetwork, RoadNetwork, directions_of
from tasks.train.models.options import RoadOptions
from tasks.train.modules import PixelModule


class EdgeModule(PixelModule):
    """Every resolution's answer learns, and that of all together, where edges and the rest weigh the same.

    Source: Xie and Tu, 2015, equations 2 and 4.
    """

    def loss_of(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        images, labels = batch
        network = cast(EdgeNetwork, self.network)
        answers = network.answers(images.contiguous(memory_format=torch.channels_last)).float()
        known = labels != IGNORED
        edges = (labels > 0) & known
        share = edges.sum() / known.sum().clamp(min=1)
        # In a batch without an edge the rest counts in full.
        weights = torch.where(edges, 1 - share, share.clamp(min=1e-3)) * known
        total = weights.sum().clamp(min=1e-6)
        truth = edges.float()[:, None].expand_as(answers)
        entropy = functional.binary_cross_entropy_with_logits(answers, truth, reduction="none")
        # Each answer's mean, and their sum.
        return (entropy * weights[:, None]).sum() / total, len(images)


class RoadModule(PixelModule):
    """Roads, and on them the direction that they run in (Batra et al., 2019)."""

    def loss_of(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        images, labels = batch
        network, options = cast(RoadNetwork, self.network), cast(RoadOptions, self.options)
        scores, directions = network.both(images.contiguous(memory_format=torch.channels_last))
        roads = (labels > 0) & (labels != IGNORED)
        loss = self.loss(scores, labels)
        if options.direction_weight > 0 and bool(roads.any()):
            wanted = directions_of(roads.float(), directions.shape[1], options.orient_theta)
            apart = functional.cross_entropy(directions.float(), wanted, reduction="none")
            loss = loss + options.direction_weight * apart[roads].mean()
        return loss, len(images)


LINE_MODULES: dict[str, type[PixelModule]] = {"edges": EdgeModule, "roads": RoadModule}
