"""Networks that answer with regions of pixels, and how they travel in a package.

Such a network (Mask2Former: Cheng et al., "Masked-attention Mask Transformer for Universal Image
Segmentation", 2022) gives the same number of regions for every image, each with the chance of every class and
of every pixel. What computes them is traced as other networks are; what becomes of the answers is the class
below, whose source travels as it is here: torch alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tasks.package.network_source import class_source, document
from tasks.package.network_trace import trace_settled

# -- travels from here: names are those of the source's head ------------------------------------------------


class PanopticSegmenter(nn.Module):
    """Images (n, bands, rows, cols), normalised -> per image its objects, as Mask R-CNN gives them.

    An object is a box, a label, a score and a mask; the best come first, and no pixel is of two of them. What
    all regions together say of the class of a pixel is :meth:`class_logits`.

    Args:
        backbone: (n, bands, rows, cols) -> logits of each region's classes, the background first and "no
            region" last (n, regions, 1 + classes + 1), and of its pixels (n, regions, rows / s, cols / s).
        things: labels of the classes that are counted object by object; labels start at 1.
        least_left: an object that keeps less of its pixels beside surer ones is none, 0-1.
    """

    def __init__(self, backbone: nn.Module, things: tuple[int, ...], least_left: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.things = things
        self.least_left = least_left

    def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        rows, cols = images.shape[2:]
        names, masks = self.backbone(images)
        return [self.objects(names[i], masks[i], rows, cols) for i in range(len(images))]

    def enlarged(self, masks: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
        """The chance of each pixel, from logits (regions, rows / s, cols / s)  # (regions, rows, cols)."""
        sized = F.interpolate(masks[None].float(), size=(rows, cols), mode="bilinear", align_corners=False)
        return sized[0].sigmoid()

    def class_logits(self, names: torch.Tensor, masks: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
        """The class of each pixel by all regions, background first  # (n, 1 + classes, rows, cols).

        A region says of a pixel its own chance of each class times the pixel's chance of being in the region;
        what all regions say is added up (the paper's semantic inference). The softmax of the logits is each
        class's share of that.
        """
        found = []
        for name, mask in zip(names, masks):  # noqa: B905 - travels as it is
            chances = name.float().softmax(dim=1)[:, :-1]
            found.append(torch.einsum("qk,qrc->krc", chances, self.enlarged(mask, rows, cols)))
        return torch.stack(found).clamp_min(1e-6).log()

    def objects(
        self, name: torch.Tensor, mask: torch.Tensor, rows: int, cols: int
    ) -> dict[str, torch.Tensor]:
        """The objects of one image, see the class; masks (k, 1, rows, cols) are 0 and 1.

        Every region whose likeliest class is counted by objects is one; each pixel goes to the surest of
        them. A score is the chance of the class times the mean chance of the mask's pixels.
        """
        sure, label = name.float().softmax(dim=1)[:, :-1].max(dim=1)
        thing = (label[:, None] == label.new_tensor(self.things)).any(dim=1)
        sure, label, inside = sure[thing], label[thing], self.enlarged(mask, rows, cols)[thing]
        own = inside >= 0.5
        kept = own
        if len(sure):
            surest = (sure[:, None, None] * inside).argmax(dim=0)
            kept = own & (surest == torch.arange(len(sure), device=sure.device)[:, None, None])
        size, left = own.flatten(1).sum(dim=1), kept.flatten(1).sum(dim=1)
        score = sure * (inside * kept).flatten(1).sum(dim=1) / left.clamp_min(1)
        real = ((left > 0) & (left >= self.least_left * size)).nonzero().flatten()
        best = real[score[real].sort(descending=True, stable=True).indices]
        shown = kept[best]
        across, down = shown.any(dim=1).int(), shown.any(dim=2).int()  # (k, cols), (k, rows)
        low = [across.argmax(dim=1), down.argmax(dim=1)]
        high = [cols - across.flip(1).argmax(dim=1), rows - down.flip(1).argmax(dim=1)]
        return {
            "boxes": torch.stack(low + high, dim=1).float(),
            "labels": label[best],
            "scores": score[best],
            "masks": shown[:, None].float(),
        }


# -- to here ------------------------------------------------------------------------------------------------


def emit_panoptic(
    backbone: nn.Module, things: Sequence[int], least_left: float, class_name: str = "Network"
) -> str:
    """Python source whose ``build()`` returns a :class:`PanopticSegmenter` around a twin of ``backbone``.

    The state_dict keys are those of ``PanopticSegmenter(backbone, …)``.

    Args:
        backbone: takes (n, bands, rows, cols) and gives both kinds of logits; which way it goes may depend on
            how it was made, not on the size of the images.
        things, least_left: see :class:`PanopticSegmenter`.

    Raises:
        PackageError: see :func:`tasks.package.network_source.emit_network`.
    """
    body, helpers = class_source(backbone, class_name, trace_settled)
    given = f"things={tuple(int(label) for label in things)!r}, least_left={float(least_left)!r}"
    return document(
        [class_name, "traced by Chipline from " + type(backbone).__name__],
        helpers + body + "\n\n" + inspect.getsource(PanopticSegmenter),
        f"    return PanopticSegmenter({class_name}(), {given}).eval()",
        detection=False,
    )
