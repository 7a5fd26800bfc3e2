"""Regions of pixels by masked attention: Mask2Former, around any encoder.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", 2022. The parts are those
of the library transformers, with its losses: Mask2Former's decoder, on the feature pyramid of MaskFormer
(Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation", 2021), which the
paper names beside deformable attention. How they follow each other is written here, so that the whole can be
traced into a package that needs torch alone, and so that the encoder is the one that all models share. Two
more things differ from the paper: places are told in cells, not as shares of the image, so that tiles may be
larger than chips; and the background is a region, so that every pixel has a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.errors import BadInputError
from tasks.package.panoptic_network import PanopticSegmenter
from tasks.train.datasets import IGNORED, Target
from tasks.train.models.encoders import WeightInit, build_levels
from tasks.train.models.layers import places, scaling
from tasks.train.models.options import PanopticOptions

USUAL_MASKS = 30  # ArcGIS's n_masks
LEAST_LEFT = 0.5  # share of its pixels that an object keeps beside surer ones
_FINEST = 2  # index of the stride of masks, 4 pixels of the downscaled image
_LEVELS = 3  # coarser resolutions, which the queries look at in turns
_HEADS = 8
_SHUT = -1e4  # added to an attention that is none: the softmax of it is 0 in any number format
_MOST_POINTS = 112 * 112  # of a mask that a loss looks at: the paper's number, of pictures of a megapixel

Answers = tuple[list[Tensor], list[Tensor]]
"""Logits of the classes and of the pixels of each region, after each layer, the last one last."""


class PanopticNetwork(nn.Module):
    """Images (n, bands, rows, cols) -> logits of regions, see :class:`PanopticSegmenter`'s backbone.

    Args:
        encoder: see :func:`tasks.train.models.encoders.build_encoder`.
        channels: its channels at strides 1, 2, 4, 8, 16 and 32.
        options: width and number of layers.
        classes: number of classes, the background included.
        queries: number of regions.
    """

    def __init__(
        self,
        encoder: nn.Module,
        channels: Sequence[int],
        options: PanopticOptions,
        *,
        classes: int,
        queries: int,
    ) -> None:
        super().__init__()
        from transformers.models.mask2former import modeling_mask2former as library
        from transformers.models.maskformer.modeling_maskformer import MaskFormerPixelDecoder

        width = options.width
        used = list(channels[_FINEST:])
        self.shrink = scaling(options.downscale)[0]
        self.encoder = encoder
        self.width = width
        self.pyramid: Any = MaskFormerPixelDecoder(
            in_features=used[-1], lateral_widths=used[:-1], feature_size=width, mask_feature_size=width
        )
        config = _configuration(hidden_dim=width, dim_feedforward=4 * width, num_attention_heads=_HEADS)
        self.layers = nn.ModuleList()
        for _ in range(options.layers):
            layer: Any = library.Mask2FormerMaskedAttentionDecoderLayer(config)
            # The library's own kind of attention in both places: torch's layer cannot be written out.
            layer.cross_attn = library.Mask2FormerAttention(width, _HEADS)
            for parameter in layer.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
            self.layers.append(layer)
        self.norm = nn.LayerNorm(width)
        self.mask_head: Any = library.Mask2FormerMLPPredictionHead(width, width, width)
        self.class_head = nn.Linear(width, classes + 1)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.query_places = nn.Parameter(torch.randn(queries, width))
        self.level_marks = nn.Parameter(torch.randn(_LEVELS, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        names, masks = self.answers(x)
        return names[-1], masks[-1]

    def answers(self, x: Tensor) -> Answers:
        """What each layer of the decoder makes of the queries, and what they are before the first one."""
        maps = self._maps(self.encoder(self.shrink(x))[_FINEST:])
        pixels = self.pyramid.mask_projection(maps[-1])
        cells, spots = [], []
        for level, one in enumerate(maps[:_LEVELS]):
            # Cells of one place have one place on all levels, counted in those of the finest.
            spots.append(places(one, self.width, step=2 ** (_LEVELS - 1 - level)).transpose(0, 1))
            cells.append(one.flatten(2).permute(2, 0, 1) + self.level_marks[level])
        hidden = self.queries[:, None].expand(-1, x.shape[0], -1)  # (queries, n, width)
        own = self.query_places[:, None]
        names, masks = [], []
        for number in range(len(self.layers) + 1):
            normal = self.norm(hidden).transpose(0, 1)
            names.append(self.class_head(normal))
            masks.append(torch.einsum("bqc,bchw->bqhw", self.mask_head(normal), pixels))
            if number < len(self.layers):
                level = number % _LEVELS
                shut = self._shut(masks[-1], maps[level])
                hidden = self._layer(self.layers[number], hidden, own, cells[level], spots[level], shut)
        return names, masks

    def _maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid's maps, from coarse to fine; the last one is of the masks' resolution."""
        pyramid = self.pyramid.fpn
        maps = [pyramid.stem(features[-1])]
        for number in range(len(features) - 1):
            maps.append(pyramid.layers[number](maps[-1], features[-2 - number]))
        return maps

    def _shut(self, mask: Tensor, cells: Tensor) -> Tensor:
        """What is added to each query's attention: nothing inside its mask  # (n heads, queries, cells).

        A query without a cell of its own looks everywhere.
        """
        small = functional.interpolate(mask, size=cells.shape[-2:], mode="bilinear", align_corners=False)
        outside = (small.flatten(2) < 0).to(small.dtype)
        somewhere = 1.0 - outside.amin(dim=2, keepdim=True)
        shut = (outside * somewhere * _SHUT).detach()
        return shut[:, None].expand(-1, _HEADS, -1, -1).flatten(0, 1)

    def _layer(
        self, layer: Any, hidden: Tensor, own: Tensor, cells: Tensor, spots: Tensor, shut: Tensor
    ) -> Tensor:
        seen, _ = layer.cross_attn(
            hidden_states=hidden,
            attention_mask=shut,
            position_embeddings=own,
            key_value_states=cells,
            key_value_position_embeddings=spots,
        )
        hidden = layer.cross_attn_layer_norm(hidden + seen)
        told, _ = layer.self_attn(hidden_states=hidden, position_embeddings=own)
        hidden = layer.self_attn_layer_norm(hidden + told)
        thought = layer.fc2(layer.activation_fn(layer.fc1(hidden)))
        result: Tensor = layer.final_layer_norm(hidden + thought)
        return result


class LearningPanopticSegmenter(PanopticSegmenter):
    """The segmenter that learns.

    Losses are the paper's: each region that is there is matched with one query by the Hungarian method;
    classes learn by cross-entropy, masks by binary cross-entropy and Dice at points that are drawn, more of
    them where the mask is in doubt; over the answers of every layer. Where a chip shows nothing is no region.
    """

    backbone: PanopticNetwork

    def __init__(self, backbone: PanopticNetwork, things: tuple[int, ...], classes: int) -> None:
        from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

        super().__init__(backbone, things, LEAST_LEFT)
        config = _configuration(num_labels=classes)
        self.weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        # In a list: what it holds does not travel.
        self._criterion: list[Any] = [Mask2FormerLoss(config, self.weights)]

    def losses(self, answers: Answers, targets: list[Target]) -> dict[str, Tensor]:
        """The parts of the loss; measured without chance in evaluation mode.

        Args:
            targets: see :class:`tasks.train.panoptic_chips.PanopticChips`.
        """
        names, masks = answers
        regions = [self.regions(target) for target in targets]
        if not any(len(labels) for labels, _ in regions):
            return {"nothing": torch.stack([part.float().sum() * 0.0 for part in (*names, *masks)]).sum()}
        criterion = self._criterion[0].to(masks[-1].device)
        points = min(_MOST_POINTS, masks[-1].shape[2] * masks[-1].shape[3])
        criterion.num_points = criterion.matcher.num_points = points
        further = [
            {"masks_queries_logits": mask.float(), "class_queries_logits": name.float()}
            for name, mask in zip(names[:-1], masks[:-1], strict=True)
        ]
        device = masks[-1].device
        with torch.autocast(device.type, enabled=False), nullcontext() if self.training else _settled(device):
            found: dict[str, Tensor] = criterion(
                masks[-1].float(),
                names[-1].float(),
                [shown.float() for _, shown in regions],
                [labels for labels, _ in regions],
                further,
            )
        return {
            key: value * next(weight for part, weight in self.weights.items() if part in key)
            for key, value in found.items()
        }

    def regions(self, target: Target) -> tuple[Tensor, Tensor]:
        """Labels (k,) and masks (k, rows, cols) of a chip's regions: objects, and classes without any."""
        classes = target["classes"]
        present = torch.unique(classes)
        stuff = [label for label in present.tolist() if label not in (*self.things, IGNORED)]
        masks = [classes == label for label in stuff]
        labels = torch.tensor(stuff, dtype=torch.int64, device=classes.device)
        return (
            torch.cat([target["labels"], labels]),
            torch.cat([target["masks"].bool(), *(mask[None] for mask in masks)]),
        )


def _configuration(**given: Any) -> Any:
    """The library's, with the paper's numbers where none are given."""
    from transformers import Mask2FormerConfig

    made: Any = Mask2FormerConfig
    return made(**given)


@contextmanager
def _settled(device: torch.device) -> Iterator[None]:
    """The same points for the same chips, whatever was drawn before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def build_panoptic_network(
    backbone_model: str,
    options: PanopticOptions,
    *,
    classes: int,
    most_regions: int,
    bands: Sequence[str],
    pretrained: bool,
    scheme: WeightInit = "RANDOM",
) -> PanopticNetwork:
    """The network, with random weights outside of its encoder.

    Args:
        classes: number of classes, without the background.
        most_regions: of the fullest chip.
        bands: names of the input bands.
        pretrained, scheme: of the encoder, see :func:`tasks.train.models.encoders.build_encoder`.

    Raises:
        BadInputError: fewer masks than a chip has regions; an encoder without features at stride 4.
    """
    if options.n_masks is not None and options.n_masks < most_regions:
        raise BadInputError(
            f"n_masks is {options.n_masks}, and one of the chips has {most_regions} regions: those beyond "
            "n_masks would be learnt as none.",
            f"Give n_masks = {most_regions} or more, or leave it out; or export smaller tiles.",
        )
    encoder, channels = build_levels(
        backbone_model,
        finest=_FINEST,
        depth=_FINEST + _LEVELS,
        downscale=options.downscale,
        bands=bands,
        pretrained=pretrained,
        scheme=scheme,
    )
    queries = options.n_masks or max(USUAL_MASKS, most_regions)
    return PanopticNetwork(encoder, channels, options, classes=classes + 1, queries=queries)
