"""Detectors that answer queries: RT-DETRv2 and D-FINE, around any encoder.

The parts are those of the library transformers, with its losses: Lv et al., "RT-DETRv2: Improved Baseline
with Bag-of-Freebies for Real-Time Detection Transformer", 2024; Peng et al., "D-FINE: Redefine Regression
Task in DETRs as Fine-grained Distribution Refinement", 2024. How they follow each other is written here, so
that the whole can be traced into a package that needs torch alone, and so that the encoder is the one that
all models share. Two things differ from the papers: first boxes have a size in pixels, not a share of the
image, so that tiles may be larger than chips; and layers start as the papers' code has it, where the
library starts them smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.package.query_detector import QueryDetector
from tasks.train.datasets import Target
from tasks.train.models.encoders import WeightInit, build_levels
from tasks.train.models.layers import counted, places
from tasks.train.models.options import QueryOptions

LEAST_SCORE = 0.05  # weaker boxes are not worth a thought
_HEADS = 8
_LARGEST = 0.99  # share of the image that a first box may take
_USUAL_QUERIES = 300
_PER_OBJECT = 2  # queries

Shapes = list[tuple[int, int]]


@dataclass(frozen=True)
class Begun:
    """What the decoder starts from.

    Attributes:
        memory: the cells of all feature maps, finest first  # (n, cells, width)
        shapes: rows and columns of each map.
        hidden: the queries  # (n, queries, width)
        reference: their boxes, centre and size as logits of shares of the image  # (n, queries, 4)
        logits: of their classes  # (n, queries, classes)
    """

    memory: Tensor
    shapes: Shapes
    hidden: Tensor
    reference: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Decoded:
    """What the decoder's layers answer, the last one last; boxes are shares of the image.

    Attributes:
        logits: of each answer  # (n, queries, classes)
        boxes: centre x, y, width, height of each answer  # (n, queries, 4)
        corners: DFINE: of each layer the distributions of the four edges  # (n, queries, 4 (bins + 1))
        initial: DFINE: the boxes that edges are measured from  # (n, queries, 4)
    """

    logits: list[Tensor]
    boxes: list[Tensor]
    corners: list[Tensor]
    initial: Tensor | None = None


class QueryNetwork(nn.Module):
    """Images (n, bands, rows, cols) -> answers (n, queries, 4 + classes).

    An answer is centre x, y, width and height as shares of the image, and the logit of each class.

    Args:
        encoder: see :func:`tasks.train.models.encoders.build_encoder`.
        channels: its channels at strides 2, 4, ….
        whole: the library's detector, whose parts this takes.
        downscale: the input is averaged over cells of ``downscale`` pixels first.
        finest: index of the finest stride that is used, 2 for stride 4 of the downscaled input.
        anchor_cells: edge of the first boxes, in cells of the feature map that they come from.
        queries: their greatest number; there are no more than there are cells.
    """

    def __init__(
        self,
        encoder: nn.Module,
        channels: Sequence[int],
        whole: Any,
        *,
        downscale: int,
        finest: int,
        anchor_cells: float,
        queries: int,
    ) -> None:
        super().__init__()
        parts, width = whole.model, whole.config.d_model
        self.shrink = nn.AvgPool2d(downscale) if downscale > 1 else nn.Identity()
        self.encoder = encoder
        self.first, self.width, self.queries = finest, width, queries
        self.anchor_cells = anchor_cells
        self.config = whole.config
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(size, width, 1, bias=False), nn.BatchNorm2d(width))
            for size in channels[finest:]
        )
        self.merge: Any = parts.encoder
        self.project: Any = parts.decoder_input_proj
        self.propose: Any = parts.enc_output
        self.score: Any = parts.enc_score_head
        self.place: Any = parts.enc_bbox_head
        self.decoder: Any = parts.decoder
        # For training alone: what a class looks like as a query, and at the end what none does.
        self.denoising = nn.Parameter(parts.denoising_class_embed.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        begun = self.begin(x)
        decoded = self.decode(begun, begun.hidden, begun.reference.sigmoid())
        return torch.cat([decoded.boxes[-1], decoded.logits[-1]], dim=-1)

    def begin(self, x: Tensor) -> Begun:
        """The queries: the most promising cells, each with a box."""
        features = self.encoder(self.shrink(x))[self.first :]
        maps = self._merged([lateral(one) for lateral, one in zip(self.lateral, features, strict=True)])
        maps = [project(one) for project, one in zip(self.project, maps, strict=True)]
        memory = torch.cat([one.flatten(2).transpose(1, 2) for one in maps], dim=1)
        anchors = torch.cat([self._anchors(one) for one in maps])
        proposed = self.propose(memory)
        logits = self.score(proposed)
        reference = self.place(proposed) + anchors
        # A slice, not a number that is asked for: small images have fewer cells than there are queries.
        best = logits.max(dim=-1).values.sort(dim=1, descending=True).indices[:, : self.queries]
        return Begun(
            memory,
            [(one.shape[2], one.shape[3]) for one in maps],
            _picked(proposed, best).detach(),
            _picked(reference, best),
            _picked(logits, best),
        )

    def decode(self, begun: Begun, hidden: Tensor, reference: Tensor, mask: Tensor | None = None) -> Decoded:
        """What the layers make of the queries.

        Args:
            hidden: # (n, queries, width)
            reference: their boxes as shares of the image  # (n, queries, 4)
            mask: -inf where a query must not see another one  # (queries, queries)
        """
        follow = self._distributions if hasattr(self.decoder, "lqe_layers") else self._refined
        return follow(begun, hidden, reference, mask)

    def _merged(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps after attention within the coarsest, from coarse to fine and back, finest first."""
        merge = self.merge
        for index, part in zip(merge.encode_proj_layers, merge.aifi, strict=True):
            cells, waves = maps[index].flatten(2).transpose(1, 2), places(maps[index], self.width)
            for layer in part.layers:
                cells = layer(cells, attention_mask=None, spatial_position_embeddings=waves)
            maps[index] = cells.transpose(1, 2).reshape(maps[index].shape)
        down = [maps[-1]]
        for lateral, block, finer in zip(
            merge.lateral_convs, merge.fpn_blocks, reversed(maps[:-1]), strict=True
        ):
            down[0] = lateral(down[0])
            larger = functional.interpolate(down[0], scale_factor=2.0, mode="nearest")
            down.insert(0, block(torch.cat([larger, finer], dim=1)))
        up = [down[0]]
        for smaller, block, coarser in zip(merge.downsample_convs, merge.pan_blocks, down[1:], strict=True):
            up.append(block(torch.cat([smaller(up[-1]), coarser], dim=1)))
        return up

    def _anchors(self, cells: Tensor) -> Tensor:
        """A box in the middle of each cell of a map, as logits of shares of the image  # (cells, 4)."""
        rows, cols = cells.shape[2], cells.shape[3]
        down, right = (counted(line) - 0.5 for line in (cells[0, 0, :, 0], cells[0, 0, 0, :]))
        right = (right / cols)[None, :].expand(rows, cols)
        down = (down / rows)[:, None].expand(rows, cols)
        edges = [torch.ones_like(right) * (self.anchor_cells / count) for count in (cols, rows)]
        wide, high = (edge.clamp(max=_LARGEST) for edge in edges)
        return _logit(torch.stack([right, down, wide, high], dim=-1).flatten(0, 1))

    def _layer(
        self,
        number: int,
        begun: Begun,
        hidden: Tensor,
        places: Tensor,
        reference: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        layer = self.decoder.layers[number]
        key = "position_embeddings"
        if not hasattr(self.decoder, "lqe_layers"):
            key = "object_queries_position_embeddings"
        answer: Tensor = layer(
            hidden,
            **{key: places},
            reference_points=reference.unsqueeze(2),
            spatial_shapes=_SHAPES_FIT,
            spatial_shapes_list=begun.shapes,
            encoder_hidden_states=begun.memory,
            encoder_attention_mask=mask,
        )
        return answer

    def _refined(self, begun: Begun, hidden: Tensor, reference: Tensor, mask: Tensor | None) -> Decoded:
        """RTDETRV2: every layer corrects the boxes of the one before."""
        decoder, logits, boxes = self.decoder, [], []
        for number in range(self.config.decoder_layers):
            hidden = self._layer(number, begun, hidden, decoder.query_pos_head(reference), reference, mask)
            box = (decoder.bbox_embed[number](hidden) + _logit(reference)).sigmoid()
            reference = box.detach()
            boxes.append(box)
            logits.append(decoder.class_embed[number](hidden))
        return Decoded(logits, boxes, [])

    def _distributions(self, begun: Begun, hidden: Tensor, reference: Tensor, mask: Tensor | None) -> Decoded:
        """DFINE: every layer corrects distributions of the edges' distances from a first box."""
        from transformers.models.d_fine.modeling_d_fine import weighting_function

        decoder = self.decoder
        project = weighting_function(decoder.max_num_bins, decoder.up, decoder.reg_scale)
        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        corners: list[Tensor] = []
        for number in range(self.config.decoder_layers):
            places = decoder.query_pos_head(reference).clamp(min=-10, max=10)
            before, hidden = hidden, self._layer(number, begun, hidden, places, reference, mask)
            if number == 0:
                boxes.append((decoder.pre_bbox_head(hidden) + _logit(reference)).sigmoid())
                initial = boxes[0].detach()
                corner = decoder.bbox_embed[0](hidden)
                logits.append(decoder.class_embed[0](hidden))
            else:
                corner = decoder.bbox_embed[number](hidden + before.detach()) + corners[-1]
            box = _boxes_of(initial, decoder.integral(corner, project), decoder.reg_scale)
            reference = box.detach()
            corners.append(corner)
            boxes.append(box)
            logits.append(decoder.lqe_layers[number](decoder.class_embed[number](hidden), corner))
        return Decoded(logits, boxes, corners, initial)


class LearningQueryDetector(QueryDetector):
    """The detector that learns: with targets, in training mode, it gives losses, as torchvision's do.

    Losses are the papers': classes by the varifocal loss, boxes by their distance and generalised IoU,
    DFINE's edges by their distributions, over the answers of every layer, each object matched with one
    query. In training known objects are put among the queries with noise, to be found again (contrastive
    denoising).
    """

    backbone: QueryNetwork

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        if targets is None or not self.training:
            return super().forward(images)
        batch = self.filled(images)
        return self._losses(batch, [_as_shares(target, batch) for target in targets])

    def _losses(self, batch: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        network = self.backbone
        begun = network.begin(batch.contiguous(memory_format=torch.channels_last))
        hidden, reference, mask, noise = begun.hidden, begun.reference.detach(), None, None
        # Validations, where the layers are in evaluation mode, measure without chance.
        if network.training and network.config.num_denoising:
            known, boxes, mask, noise = self._noisy(begun, targets)
            if noise is not None:
                hidden = torch.cat([known.to(hidden.dtype), hidden], dim=1)
                reference = torch.cat([boxes.to(reference.dtype), reference], dim=1)
        decoded = network.decode(begun, hidden, reference.sigmoid(), mask)
        from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss
        from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

        fine = decoded.initial is not None
        loss: Any = DFineForObjectDetectionLoss if fine else RTDetrForObjectDetectionLoss
        more: dict[str, Any] = {}
        if decoded.initial is not None:
            initial = torch.stack([decoded.initial] * len(decoded.corners), dim=1).float()
            more["initial_reference_points"] = initial
            more["predicted_corners"] = torch.stack(decoded.corners, dim=1).float()
        with torch.autocast(batch.device.type, enabled=False):
            _, losses, _ = loss(
                decoded.logits[-1].float(),
                targets,
                batch.device,
                decoded.boxes[-1].float(),
                network.config,
                outputs_class=torch.stack(decoded.logits, dim=1).float(),
                outputs_coord=torch.stack(decoded.boxes, dim=1).float(),
                enc_topk_logits=begun.logits.float(),
                enc_topk_bboxes=begun.reference.float().sigmoid(),
                denoising_meta_values=noise,
                **more,
            )
        return {name: value.float() for name, value in losses.items()}

    def _noisy(self, begun: Begun, targets: list[dict[str, Tensor]]) -> Any:
        """Queries of the known objects with noise, and which queries may see which."""
        from transformers.models.rt_detr_v2 import modeling_rt_detr_v2 as library

        group: Any = library.get_contrastive_denoising_training_group
        network, config = self.backbone, self.backbone.config

        def seen(classes: Tensor) -> Tensor:
            return functional.embedding(classes, network.denoising, padding_idx=config.num_labels)

        return group(
            targets,
            config.num_labels,
            begun.hidden.shape[1],
            seen,
            num_denoising_queries=config.num_denoising,
            label_noise_ratio=config.label_noise_ratio,
            box_noise_scale=config.box_noise_scale,
        )


def build_query_network(
    model_type: str,
    backbone_model: str,
    options: QueryOptions,
    *,
    classes: int,
    most_objects: int,
    bands: Sequence[str],
    pretrained: bool,
    scheme: WeightInit = "RANDOM",
) -> QueryNetwork:
    """The network, with random weights outside of its encoder.

    Args:
        model_type: RTDETRV2 or DFINE.
        most_objects: greatest number of objects of a chip, see :func:`queries_for`.
        bands: names of the input bands.
        pretrained, scheme: of the encoder, see :func:`tasks.train.models.encoders.build_encoder`.

    Raises:
        BadInputError: the encoder gives no features at the finest stride.
    """
    finest = int(math.log2(options.stride // options.downscale))
    encoder, channels = build_levels(
        backbone_model,
        finest=finest,
        depth=options.resolutions,
        downscale=options.downscale,
        bands=bands,
        pretrained=pretrained,
        scheme=scheme,
    )
    queries = options.queries or queries_for(most_objects)
    return QueryNetwork(
        encoder,
        channels,
        _library_detector(model_type, options, classes=classes, queries=queries),
        downscale=options.downscale,
        finest=finest,
        anchor_cells=options.anchor_size / options.stride,
        queries=queries,
    )


def queries_for(most_objects: int) -> int:
    """Queries for chips of which the fullest has so many objects: the papers' 300, or two per object."""
    return max(_USUAL_QUERIES, -(-_PER_OBJECT * most_objects // 100) * 100)


def detector_arguments(options: QueryOptions) -> dict[str, Any]:
    """The plain arguments from which the detector is built here and in the package."""
    return {
        "size_divisible": options.size_divisor,
        "score_thresh": LEAST_SCORE,
        "nms_thresh": options.nms_overlap,
    }


def _library_detector(model_type: str, options: QueryOptions, *, classes: int, queries: int) -> Any:
    """The library's detector around an encoder that nobody uses."""
    from transformers import DFineConfig, RTDetrResNetConfig, RTDetrV2Config
    from transformers.models.d_fine.modeling_d_fine import DFineForObjectDetection
    from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import RTDetrV2ForObjectDetection

    levels, width = options.levels, options.width
    resnet: Any = RTDetrResNetConfig
    shared: dict[str, Any] = {
        "backbone_config": resnet(
            embedding_size=8,
            hidden_sizes=[8] * 4,
            depths=[1] * 4,
            layer_type="basic",
            out_indices=list(range(5 - levels, 5)),
        ),
        "freeze_backbone_batch_norms": False,
        "num_labels": classes,
        "d_model": width,
        "encoder_hidden_dim": width,
        "encoder_in_channels": [width] * levels,
        "decoder_in_channels": [width] * levels,
        "feat_strides": [options.stride * 2**level for level in range(levels)],
        "encode_proj_layers": [levels - 1],
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "encoder_attention_heads": _HEADS,
        "decoder_attention_heads": _HEADS,
        "hidden_expansion": options.expansion,
        "num_feature_levels": levels,
        "decoder_layers": options.layers,
        "num_queries": queries,
        # The embedding of classes is there in any case: packages have the same tensors.
        "num_denoising": max(1, options.denoising),
        "tie_word_embeddings": False,
        "attn_implementation": "eager",  # plain operations, which can be traced
    }
    made: Any
    if model_type == "DFINE":
        made = DFineForObjectDetection(DFineConfig(**shared, depth_mult=options.expansion))
    else:
        made = RTDetrV2ForObjectDetection(RTDetrV2Config(**shared, decoder_n_levels=levels))
    made.config.num_denoising = options.denoising
    _start(made)
    return made


def _start(made: Any) -> None:
    """Random weights as the papers' code starts from, in place of the library's, which are of fine-tuning.

    Plain layers start as torch has them, and what is special starts as the library has it.
    """
    plain = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)
    for layer in made.modules():
        if isinstance(layer, plain):
            layer.reset_parameters()
    for layer in made.modules():
        if not type(layer).__module__.startswith("torch."):
            made._init_weights(layer)
    last = made.model.enc_bbox_head.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


class _ShapesFit:
    """Stands for the maps' shapes as a tensor, which the library only compares with what it was made from."""

    def __getitem__(self, key: Any) -> _ShapesFit:
        return self

    def __mul__(self, other: Any) -> _ShapesFit:
        return self

    def sum(self) -> _ShapesFit:
        return self

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


_SHAPES_FIT = _ShapesFit()


def _picked(values: Tensor, which: Tensor) -> Tensor:
    """The rows of ``values`` (n, cells, m) that ``which`` (n, k) names  # (n, k, m)."""
    return values.gather(1, which.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _logit(shares: Tensor) -> Tensor:
    shares = shares.clamp(1e-5, 1 - 1e-5)
    return torch.log(shares / (1 - shares))


def _boxes_of(initial: Tensor, distances: Tensor, scale: Tensor) -> Tensor:
    """Boxes whose edges have the distances (n, queries, 4: left, top, right, bottom) from the first boxes.

    Args:
        scale: that distances are measured in (the paper's c)  # (1,)
    """
    step = initial[..., 2:] / scale
    low = initial[..., :2] - (0.5 * scale + distances[..., :2]) * step
    high = initial[..., :2] + (0.5 * scale + distances[..., 2:]) * step
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def _as_shares(target: Target, batch: Tensor) -> dict[str, Tensor]:
    """Boxes as centre and size, as shares of the image; classes from 0."""
    boxes = target["boxes"]
    rows, cols = batch.shape[2:]
    whole = boxes.new_tensor([cols, rows])
    size = boxes[:, 2:] - boxes[:, :2]
    shares = torch.cat([(boxes[:, :2] + size / 2) / whole, size / whole], dim=1)
    return {"class_labels": target["labels"] - 1, "boxes": shares}
