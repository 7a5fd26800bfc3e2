"""What a training consists of, by kind of model: samples, network, its source, the module that learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from tasks.labels import ClassSchema
from tasks.package.network_source import emit_detector, emit_network
from tasks.train import datasets, images, pairs
from tasks.train.image_chips import Pictures, TranslationChips, UnpairedChips
from tasks.train.line_modules import LINE_MODULES, RoadChips
from tasks.train.models import change, classifier, custom, detectors, lines, pixels
from tasks.train.models.options import (
    AnyOptions,
    ChangeOptions,
    ClassifierOptions,
    EdgeOptions,
    ImageOptions,
    PanopticOptions,
    PixelOptions,
    QueryOptions,
    RoadOptions,
    enlargement,
)
from tasks.train.modules import (
    InstanceModule,
    LabelModule,
    ObjectModule,
    PixelModule,
    QueryModule,
    TrainingModule,
)
from tasks.train.normalisation import Normalisation
from tasks.train.panoptic_chips import PanopticChips, collate_panoptic
from tasks.train.parameters import TrainParameters
from tasks.train.recipes import TRANSFORMS, pairs_of_files, recipe_of
from tasks.train.schedule import Budget
from tasks.training_data import Chip, TrainingData

Samples = datasets.PixelChips | datasets.ObjectChips | datasets.InstanceChips | datasets.LabelChips | Pictures


MULTI_LABELS = "MultiLabeled_Tiles"


@dataclass(frozen=True)
class Assembled:
    """What is trained.

    Attributes:
        module: the network and how it learns.
        source: of the network, as the package carries it; written before the training, so that a network
            that cannot travel is refused before it costs an hour.
    """

    module: TrainingModule
    source: str


def samples_of(
    parameters: TrainParameters,
    options: AnyOptions,
    chips: list[Chip],
    normalisation: Normalisation,
    size: int,
    *,
    validation: bool = False,
    tile_size: int | None = None,
    upright: bool = False,
    output: Normalisation | None = None,
    things: Sequence[int] = (),
) -> Samples:
    """Chips as samples.

    Args:
        size: edge of the crops, pixels, or what whole chips are scaled to.
        validation: take whole chips, as they are.
        tile_size: the shorter edge of the chips, pixels; ``resize_to`` is told from it.
        upright: the chips are pictures with an up, not maps.
        output: of pictures that are made, see :func:`tasks.train.images.output_normalisation`.
        things: of panoptic models, see :func:`tasks.train.panoptic_chips.things_of`.
    """
    recipe = recipe_of(parameters.augmentation, parameters.augmentation_parameters, upright=upright)
    shared: dict[str, Any] = {
        "normalisation": normalisation,
        "size": None if validation else size,
        "recipe": recipe,
        "multiple": options.size_divisor,
    }
    factor = 1.0 if tile_size is None else enlargement(parameters, tile_size)
    if isinstance(options, ImageOptions):
        return images.picture_samples(options, chips, output, shared, factor)
    if isinstance(options, PixelOptions):
        if isinstance(options, RoadOptions) and options.gaussian_thresh is not None:
            return RoadChips(
                chips, gaussian_thresh=options.gaussian_thresh, ignored=options.ignored, **shared
            )
        kind = pairs.PairChips if isinstance(options, ChangeOptions) else datasets.PixelChips
        return kind(chips, ignored=options.ignored, **shared)
    if isinstance(options, ClassifierOptions):
        return datasets.LabelChips(chips, output=parameters.resize_to or size, **shared)
    if isinstance(options, PanopticOptions):
        return PanopticChips(chips, things=things, **shared)
    if parameters.kind == "instances":
        return datasets.InstanceChips(chips, **shared)
    return datasets.ObjectChips(chips, factor=factor, **shared)


def with_file(parameters: TrainParameters, data: Sequence[TrainingData]) -> TrainParameters:
    """The parameters with what ``transforms.json`` says, where augmentation is FILE.

    A plan has done that already; who trains without one has it done here.

    Raises:
        BadInputError: no folder has such a file, or it cannot be read.
    """
    if parameters.augmentation != "FILE" or parameters.augmentation_parameters:
        return parameters

    def read(folder: str) -> bytes | None:
        path = Path(folder) / TRANSFORMS
        return path.read_bytes() if path.is_file() else None

    steps = pairs_of_files([str(item.folder) for item in data], read)
    return parameters.model_copy(update={"augmentation_parameters": steps})


def collate_of(parameters: TrainParameters) -> Callable[[list[Any]], Any]:
    """How samples become a batch."""
    whole = parameters.kind in ("objects", "instances")
    if parameters.kind == "labels":
        return datasets.collate_labels
    if parameters.kind == "panoptic":
        return collate_panoptic
    return datasets.collate_objects if whole else datasets.collate_pixels


def several_labels(train_set: datasets.LabelChips) -> bool:
    """Whether chips have several classes, or none: told by the format, or by the chips."""
    return any(chip.metadata_format == MULTI_LABELS or len(chip.values) != 1 for chip in train_set.chips)


def assemble(
    parameters: TrainParameters,
    options: AnyOptions,
    schema: ClassSchema,
    bands: Sequence[str],
    train_set: Samples,
    shared: dict[str, Any],
) -> Assembled:
    """The network of the model type, ready to train.

    Args:
        bands: their names; of pairs those of one date.
        shared: what every module takes: ``learning_rate``, ``budget``, ``freeze``.

    Raises:
        BadInputError, PackageError: a backbone that does not fit, or that cannot be written out.
    """
    encoder: dict[str, Any] = {
        "bands": bands,
        "pretrained": False,  # its first weights come afterwards (tasks/train/beginning.py)
        "scheme": parameters.weight_init_scheme,
    }
    if isinstance(options, ImageOptions):
        assert isinstance(train_set, TranslationChips | UnpairedChips)
        maker, source = images.assemble_pictures(parameters, options, train_set, encoder, shared)
        _channels_last(maker.network)
        return Assembled(maker, source)
    shared = {**shared, "schema": schema}
    if parameters.custom_model is not None:
        own = custom.build_custom(
            parameters, classes=schema.names, bands=bands, learning_rate=shared["learning_rate"]
        )
        source = emit_network(own)
        _channels_last(own)
        balanced = isinstance(options, PixelOptions) and options.class_balancing
        learner_of_own = custom.module_of(
            own,
            options,
            class_weights=_class_weights(cast(Any, train_set), len(schema)) if balanced else None,
            several=isinstance(train_set, datasets.LabelChips) and several_labels(train_set),
            **shared,
        )
        return Assembled(learner_of_own, source)
    if isinstance(options, PixelOptions):
        assert isinstance(train_set, datasets.PixelChips)
        network: nn.Module
        if isinstance(options, ChangeOptions):
            network = change.build_change_network(
                parameters.backbone_model, options, channels=len(schema) + 1, **encoder
            )
            part = network.get_submodule("encoder")
        elif isinstance(options, EdgeOptions | RoadOptions):
            network = lines.build_line_network(
                parameters.model_type, parameters.backbone_model, options, **encoder
            )
            part = network.get_submodule("encoder")
        else:
            network = pixels.build_pixel_network(
                parameters.model_type, parameters.backbone_model, options, channels=len(schema) + 1, **encoder
            )
            part = network.get_submodule("segmentation.encoder")
        source = emit_network(network)
        _channels_last(network)
        weights = _class_weights(train_set, len(schema)) if options.class_balancing else None
        learns = LINE_MODULES.get(parameters.kind, PixelModule)
        module = learns(network, encoder=part, options=options, class_weights=weights, **shared)
        return Assembled(module, source)
    if isinstance(options, ClassifierOptions):
        assert isinstance(train_set, datasets.LabelChips)
        chip_classifier = classifier.build_classifier(
            parameters.backbone_model, options, classes=len(schema), **encoder
        )
        source = emit_network(chip_classifier)
        _channels_last(chip_classifier)
        several = several_labels(train_set)
        learner = LabelModule(
            chip_classifier, encoder=chip_classifier.encoder, options=options, several=several, **shared
        )
        return Assembled(learner, source)
    if isinstance(options, QueryOptions):
        assert isinstance(train_set, datasets.ObjectChips)
        return _assemble_queries(parameters, options, len(schema), train_set, encoder, shared)
    if isinstance(options, PanopticOptions):
        assert isinstance(train_set, PanopticChips)
        return _assemble_panoptic(parameters, options, len(schema), train_set, encoder, shared)
    pyramid = detectors.build_pyramid(parameters.backbone_model, options, **encoder)
    arguments = detectors.detector_arguments(
        parameters.model_type, options, classes=len(schema), bands=len(bands)
    )
    detector = detectors.build_object_detector(parameters.model_type, pyramid, arguments)
    source = emit_detector(pyramid, cast(Any, parameters.model_type), arguments)
    _channels_last(detector)
    kind = InstanceModule if parameters.kind == "instances" else ObjectModule
    return Assembled(kind(detector, encoder=pyramid.encoder, options=options, **shared), source)


def _assemble_queries(
    parameters: TrainParameters,
    options: QueryOptions,
    classes: int,
    train_set: datasets.ObjectChips,
    encoder: dict[str, Any],
    shared: dict[str, Any],
) -> Assembled:
    # Imported where it is needed: the library behind it takes seconds to load.
    from tasks.package.query_detector import emit_query_detector
    from tasks.train.models import queries

    network = queries.build_query_network(
        parameters.model_type,
        parameters.backbone_model,
        options,
        classes=classes,
        most_objects=train_set.most_objects() if options.queries is None else 0,
        **encoder,
    )
    arguments = queries.detector_arguments(options)
    source = emit_query_detector(network, arguments)
    detector = queries.LearningQueryDetector(network, **arguments)
    _channels_last(detector)
    return Assembled(QueryModule(detector, encoder=network.encoder, options=options, **shared), source)


def _assemble_panoptic(
    parameters: TrainParameters,
    options: PanopticOptions,
    classes: int,
    train_set: PanopticChips,
    encoder: dict[str, Any],
    shared: dict[str, Any],
) -> Assembled:
    # As above.
    from tasks.package.panoptic_network import emit_panoptic
    from tasks.train.models import panoptic
    from tasks.train.panoptic_module import PanopticModule

    network = panoptic.build_panoptic_network(
        parameters.backbone_model,
        options,
        classes=classes,
        most_regions=train_set.most_regions(),
        **encoder,
    )
    source = emit_panoptic(network, train_set.things, panoptic.LEAST_LEFT)
    segmenter = panoptic.LearningPanopticSegmenter(network, train_set.things, classes + 1)
    _channels_last(segmenter)
    return Assembled(PanopticModule(segmenter, encoder=network.encoder, options=options, **shared), source)


def budget_of(parameters: TrainParameters) -> Budget:
    """How long the training lasts; its steps are set once the batch size is known."""
    minutes = parameters.time_limit_minutes
    return Budget(steps=1, seconds=None if minutes is None else minutes * 60.0)


def _class_weights(train_set: datasets.PixelChips, classes: int) -> list[float]:
    """The inverse of each label's frequency, 1 on average over the pixels; 0 for labels that do not occur."""
    counts = datasets.count_labels(train_set, classes).astype(np.float64)
    present = counts > 0
    shares = np.where(present, counts[present].sum() / np.maximum(counts, 1) / present.sum(), 0.0)
    weights: list[float] = shares.tolist()
    return weights


def _channels_last(network: nn.Module) -> None:
    """Put the weights into the layout in which convolutions run fastest on CPUs and GPUs."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
