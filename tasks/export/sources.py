"""What the chips of one item are made of: pixels, labels, masks, seen through the item's grid.

Labels come from vectors (prepared once, near ones looked up by place) or from a classified raster (read
like imagery). Both answer the same questions: what counts in these places, and what class is this pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.export.inputs import ExportItem
from tasks.export.parameters import ExportParameters
from tasks.imagery import GridReader, Window
from tasks.imagery.places import Place
from tasks.imagery.streaming import piece_origin, piece_shape
from tasks.imagery.turning import turned
from tasks.labels import PixelLabels
from tasks.labels.mask_polygons import MaskRegion
from tasks.labels.pixels import LabelsInWindow
from tasks.labels.prepared import PreparedLabels
from tasks.labels.raster import RasterLabels, objects_of_mask
from tasks.training_data.formats import format_of

Array = npt.NDArray[Any]
_BYTES_PER_PIXEL_MORE = 2  # validity and class value


def around(places: Sequence[Place]) -> Window:
    """The smallest window around all places."""
    windows = [place.window for place in places]
    row, col = min(window.row for window in windows), min(window.col for window in windows)
    row_stop, col_stop = (
        max(window.row_stop for window in windows),
        max(window.col_stop for window in windows),
    )
    return Window(row, col, row_stop - row, col_stop - col)


class VectorSource:
    """Prepared vector labels on one grid."""

    def __init__(self, labels: PreparedLabels, transform: tuple[float, ...], *, min_overlap: float) -> None:
        self.labels = labels
        self.transform = transform
        self.min_overlap = min_overlap

    def reach(self, window: Window) -> None:
        """Say that questions will be about places in a window."""
        self.labels.reach(self.transform, window)

    def near(self, window: Window) -> PixelLabels:
        """The labels that touch a window."""
        return self.labels.near(self.transform, window)

    def classes_of(self, window: Window) -> Array:
        """Class values of a window, for the stream  # (rows, cols)."""
        return self.near(window).burn(window.row, window.col, *window.shape)

    def counts_in(self, places: Sequence[Place], features: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which places hold a label, or the one record they are cut around  # (n,)."""
        found = self.near(around(places)).at(places, min_overlap_ratio=self.min_overlap)
        return np.array(
            [
                len(item) > 0 if feature < 0 else feature in item.indices
                for item, feature in zip(found, features, strict=True)
            ],
            dtype=bool,
        )

    def view(self, places: Sequence[Place]) -> VectorView:
        """The labels of some places, for cutting."""
        return VectorView(self, list(places))


class VectorView:
    """Vector labels of a run of places, looked up when they are asked for."""

    def __init__(self, source: VectorSource, places: list[Place]) -> None:
        self.source = source
        self.places = places

    @cached_property
    def near(self) -> PixelLabels:
        """The labels that touch any of the places."""
        return self.source.near(around(self.places))

    @cached_property
    def found(self) -> list[LabelsInWindow]:
        """For each place the labels that count in it."""
        return self.near.at(self.places, min_overlap_ratio=self.source.min_overlap)

    def objects(self, index: int, mask: Array | None) -> LabelsInWindow:  # noqa: ARG002
        """The objects of the place ``index``, in record order."""
        return self.found[index]

    def mask(self, index: int, burnt: Array | None) -> Array:
        """Class values of the place; ``burnt`` is the stream's answer for its window, still unturned."""
        place = self.places[index]
        left_out = self.found[index].left_out.tolist() if self.source.min_overlap > 0 else []
        if burnt is not None and place.is_exact and not left_out:
            return np.rot90(burnt, -place.quarters, axes=(-2, -1))
        # Some labels do not count in this chip, though they do in its neighbours; or pixels are no grid's.
        return self.near.burn_at(place, leave_out=left_out)

    def instances(self, index: int, mask: Array | None) -> dict[int, Array]:  # noqa: ARG002
        """Numbered objects of the place, by class value."""
        place, found = self.places[index], self.found[index]
        return {
            int(value): self.near.instances_at(place, found, int(value)) for value in np.unique(found.values)
        }

    def alone(self, index: int, feature: int) -> npt.NDArray[np.bool_]:
        """Which pixels of the place belong to one feature."""
        others = self.near.numbers[self.near.numbers != feature]
        alone: npt.NDArray[np.bool_] = self.near.burn_at(self.places[index], leave_out=others.tolist()) != 0
        return alone

    def value_of(self, feature: int) -> int:
        """Class value of a feature."""
        return int(self.near.values[np.flatnonzero(self.near.numbers == feature)[0]])


class RasterSource:
    """A classified raster on one grid."""

    def __init__(self, labels: RasterLabels) -> None:
        self.labels = labels

    def classes_of(self, window: Window) -> Array:
        """Class values of a window  # (rows, cols)."""
        return self.labels.read(window)

    def counts_in(self, places: Sequence[Place], features: Sequence[int]) -> npt.NDArray[np.bool_]:  # noqa: ARG002
        """Which places hold a labelled pixel  # (n,)."""
        window = around(places)
        mask = self.labels.read(window)
        found = []
        for place in places:
            rows, cols = place.window.slices_in(window)
            found.append(bool(turned(mask[rows, cols], place, place.window).any()))
        return np.array(found, dtype=bool)

    def view(self, places: Sequence[Place]) -> RasterView:
        """The labels of some places, for cutting."""
        return RasterView(list(places))


class RasterView:
    """Raster labels of a run of places; all comes from the mask."""

    def __init__(self, places: list[Place]) -> None:
        self.places = places

    def objects(self, index: int, mask: Array | None) -> LabelsInWindow:  # noqa: ARG002
        """Connected regions of one class each."""
        return objects_of_mask(_given(mask))

    def mask(self, index: int, burnt: Array | None) -> Array:
        """Class values of the place, from those of its window."""
        place = self.places[index]
        return turned(_given(burnt), place, place.window)

    def instances(self, index: int, mask: Array | None) -> dict[int, Array]:  # noqa: ARG002
        """Numbered regions of the place, by class value."""
        objects = objects_of_mask(_given(mask))
        return {int(value): objects.instances(int(value)) for value in np.unique(objects.values)}


def _given(mask: Array | None) -> Array:
    if mask is None:
        raise RuntimeError("raster labels are needed as a mask")
    return mask


LabelSource = VectorSource | RasterSource
LabelView = VectorView | RasterView


class ItemSources:
    """All sources of an item, open; a context manager.

    Args:
        parameters: of the export.
        item: the item.
        labels: what counts as a label; None where the export has none.
        instances: the instance data.
        region: chips must lie completely inside; None for everywhere.
    """

    def __init__(
        self,
        parameters: ExportParameters,
        item: ExportItem,
        *,
        labels: LabelSource | None = None,
        instances: LabelSource | None = None,
        region: MaskRegion | None = None,
    ) -> None:
        self.parameters = parameters
        self.grid = item.target()
        self.labels = labels
        self.instances = instances
        self.region = region
        self._stack = ExitStack()
        self._infos = item.infos()
        self.reader = self._stack.enter_context(GridReader(self._infos, self.grid, item.bands.indices))
        infos2 = item.infos2()
        self.reader2 = (
            self._stack.enter_context(GridReader(infos2, self.grid, item.bands2.indices)) if infos2 else None
        )

    def __enter__(self) -> ItemSources:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def bytes_per_pixel(self) -> int:
        """What a pixel of the stream takes."""
        total = self.reader.band_count * self.reader.dtype.itemsize
        if self.reader2 is not None:
            total += self.reader2.band_count * self.reader2.dtype.itemsize
        return total + _BYTES_PER_PIXEL_MORE

    def piece(self) -> tuple[int, int]:
        """(rows, cols) of the pieces that the imagery is streamed in."""
        return piece_shape(self._infos, self.grid, self.bytes_per_pixel)

    def origin(self) -> tuple[int, int]:
        """(row, col) where a piece begins, so that blocks are not cut."""
        return piece_origin(self._infos, self.grid)

    def choose(self, places: Sequence[Place], features: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which places become chips  # (n,).

        They touch a raster (and one of the second collection, where there is one), lie inside the mask
        polygons and, unless all are wanted, hold a label.

        Args:
            places: candidates.
            features: for each the record that it is cut around, which must count in it; -1 for none.
        """
        chosen = np.array([self._touches_rasters(place.window) for place in places], dtype=bool)
        if self.region is not None and chosen.any():
            at = np.flatnonzero(chosen).tolist()
            chosen[at] = self.region.covers(self.grid.transform, [places[index] for index in at])
        # A chip whose class is that of its label cannot do without one.
        by_label = "value" in format_of(self.parameters.metadata_format).needs
        wants_labels = by_label or self.parameters.output_nofeature_tiles == "ONLY_TILES_WITH_FEATURES"
        if self.labels is not None and (wants_labels or max(features) >= 0) and chosen.any():
            at = np.flatnonzero(chosen).tolist()
            chosen[at] = self.labels.counts_in(
                [places[index] for index in at], [features[index] for index in at]
            )
        return chosen

    def _touches_rasters(self, window: Window) -> bool:
        readers = (self.reader, self.reader2)
        return all(reader.touching(window) for reader in readers if reader is not None)

    def read(self, window: Window, *, mask: bool, instances: bool) -> tuple[Array, ...]:
        """All layers of a window: picture, validity, then class values, instance classes, second picture and
        its validity, as far as they are wanted or there."""
        pixels = self.reader.read(window)
        layers: list[Array] = [pixels.values, pixels.valid]
        if mask and self.labels is not None:
            layers.append(self.labels.classes_of(window))
        if instances and self.instances is not None:
            layers.append(self.instances.classes_of(window))
        if self.reader2 is not None:
            second = self.reader2.read(window)
            layers += [second.values, second.valid]
        return tuple(layers)
