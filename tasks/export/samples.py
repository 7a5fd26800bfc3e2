"""Chips in memory: streamed layers and labels put together, turned where they are turned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine

from tasks.export.candidates import Candidate
from tasks.export.parameters import ExportParameters
from tasks.export.sources import ItemSources, LabelView, VectorSource, VectorView
from tasks.imagery.places import Place
from tasks.imagery.turning import turned
from tasks.labels.pixels import LabelsInWindow
from tasks.training_data.formats import format_of
from tasks.training_data.masks import within
from tasks.training_data.sample import Sample, Transform

Array = npt.NDArray[Any]
# A streamed window is a few layers; which ones, SampleMaker knows.
Layers = tuple[Array, ...]


class SampleMaker:
    """Makes the samples of lanes from their places and a stream of layers.

    Args:
        parameters: of the export.
        sources: of the item.
    """

    def __init__(self, parameters: ExportParameters, sources: ItemSources) -> None:
        self.parameters = parameters
        self.sources = sources
        chosen = format_of(parameters.metadata_format)
        has_labels = sources.labels is not None
        vector = isinstance(sources.labels, VectorSource)
        self.needs = (
            chosen.needs if has_labels else frozenset(chosen.needs - {"mask", "objects", "instances"})
        )
        self.by_label = "value" in chosen.needs
        # Of a classified raster all answers come from the mask.
        self.needs_mask = has_labels and ("mask" in self.needs or (not vector and bool(chosen.needs)))
        self.needs_instance_classes = "instance data" in self.needs and not isinstance(
            sources.instances, VectorSource
        )
        self.transform = Affine(*sources.grid.transform)

    def samples(
        self, chosen: Sequence[Candidate], first_number: int, stream: Iterator[Layers]
    ) -> Iterator[Sample]:
        """The samples of one lane; the stream gives the layers of their windows, in order."""
        places = [item.place for item in chosen]
        labels = self.sources.labels
        view = labels.view(places) if labels is not None and self.needs else None
        instances = self.sources.instances
        instance_view = instances.view(places) if instances is not None else None
        for index, item in enumerate(chosen):
            layers = list(next(stream))
            yield self._sample(index, item, first_number + index, layers, view, instance_view)

    def _sample(
        self,
        index: int,
        item: Candidate,
        number: int,
        layers: list[Array],
        view: LabelView | None,
        instance_view: LabelView | None,
    ) -> Sample:
        place = item.place
        image, known = _picture(layers.pop(0), layers.pop(0), place)
        valid = known
        burnt = layers.pop(0) if self.needs_mask else None
        instance_classes = layers.pop(0) if self.needs_instance_classes else None
        image2, valid2 = _picture(layers.pop(0), layers.pop(0), place) if layers else (None, None)
        values: dict[str, Any] = {}
        if view is not None:
            values = self._labels(index, item, view, burnt, valid)
            if self.parameters.blacken_around_feature and "alone" in values:
                # What is black says nothing about the imagery: it is left out of the statistics, too.
                alone = values["alone"]
                image, valid = np.where(alone, image, image.dtype.type(0)), valid & alone
            values.pop("alone", None)
        if instance_view is not None:
            mask = instance_view.mask(index, instance_classes) if self.needs_instance_classes else None
            values["instances"] = _only_valid(instance_view.instances(index, mask), valid)
        return Sample(
            number=number,
            image=image,
            valid=valid,
            transform=self._transform(place),
            image2=image2,
            valid2=valid2,
            known=known,
            known2=valid2,
            **values,
        )

    def _transform(self, place: Place) -> Transform:
        a, b, c, d, e, f = self.sources.grid.transform
        if place.angle == 0:  # the same numbers as below, for a fraction of the time
            return a, b, a * place.col + b * place.row + c, d, e, d * place.col + e * place.row + f
        return _six(self.transform @ place.to_grid)

    def _labels(
        self, index: int, item: Candidate, view: LabelView, burnt: Array | None, valid: Array
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        mask = view.mask(index, burnt) if self.needs_mask else None
        if self.by_label:
            values["value"] = self._value(item, view, mask)
        if mask is not None:
            # Where there is no picture there is nothing to learn from a label.
            mask = within(mask, valid)
            values["mask"] = mask
        if "objects" in self.needs:
            objects = view.objects(index, mask)
            values["objects"] = only(objects, item.feature) if item.feature >= 0 else objects
        if "instances" in self.needs:
            values["instances"] = _only_valid(view.instances(index, mask), valid)
        if self.by_label and self.parameters.blacken_around_feature:
            values["alone"] = _alone(index, item, view, mask)
        return values

    @staticmethod
    def _value(item: Candidate, view: LabelView, mask: Array | None) -> int:
        if isinstance(view, VectorView):
            return view.value_of(item.feature)
        counts = np.bincount(np.asarray(mask).ravel())
        counts[0] = 0
        return int(counts.argmax())


def only(objects: LabelsInWindow, feature: int) -> LabelsInWindow:
    """The one object that is a given feature's."""
    here = objects.indices == feature
    return LabelsInWindow(
        indices=objects.indices[here],
        values=objects.values[here],
        boxes=objects.boxes[here],
        areas=objects.areas[here],
        left_out=objects.left_out,
        parts=lambda: objects.polygons[here],
    )


def _alone(index: int, item: Candidate, view: LabelView, mask: Array | None) -> Array:
    if isinstance(view, VectorView):
        return view.alone(index, item.feature)
    labelled: Array = np.asarray(mask) != 0
    return labelled


def _only_valid(instances: dict[int, Array], valid: Array) -> dict[int, Array]:
    return {value: within(mask, valid) for value, mask in instances.items()}


def _picture(values: Array, valid: Array, place: Place) -> tuple[Array, Array]:
    if place.angle == 0:
        return values, valid
    window = place.window
    return (
        turned(values, place, window, method="bilinear", valid=valid),
        turned(valid, place, window),
    )


def _six(transform: Affine) -> Transform:
    a, b, c, d, e, f = tuple(transform)[:6]
    return a, b, c, d, e, f
