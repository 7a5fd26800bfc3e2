"""The plan of an export: which chips there are, how they are numbered, how the work is cut.

Two passes. The labels alone say which places become chips (this module); a running count over the places,
row by row, gives every chip its number before a pixel is read. So the numbers are dense and do not depend
on workers, parts or resuming.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInputError, LabelError, NotFoundError
from tasks.export.addresses import load_access, put_back, save_access, taken_out
from tasks.export.candidates import Candidates
from tasks.export.inputs import ExportItem, Inputs, label_identities
from tasks.export.label_sets import LabelSet, LabelSets
from tasks.export.parameters import ExportParameters
from tasks.export.sources import ItemSources
from tasks.labels import ClassSchema
from tasks.store import ObjectStore, join
from tasks.training_data.formats import format_of
from tasks.training_data.sample import Context

PLAN = "plan.json"
# More is a mistake, such as an image service of the whole world without an extent.
_MOST_POSITIONS = 100_000_000
# A part may hold so many times the chips it should.
_MOST_OF_PART = 1.25


class ExportPart(BaseModel):
    """Some lanes of one tract of an item: what one worker run cuts.

    Attributes:
        item: index of the item.
        tract: which tract of it.
        lane: first lane.
        firsts: number of the first chip of each lane.
        chips: how many chips it holds.
        chosen: which of the candidates of all its lanes become chips: packed bits, base64.
    """

    model_config = ConfigDict(frozen=True)

    item: int
    tract: int
    lane: int
    firsts: list[int]
    chips: int
    chosen: str

    @property
    def lanes(self) -> range:
        """Its lanes."""
        return range(self.lane, self.lane + len(self.firsts))

    def choices(self, count: int) -> npt.NDArray[np.bool_]:
        """Of ``count`` candidates of its lanes, which become chips  # (count,)."""
        bits = np.frombuffer(base64.b64decode(self.chosen), dtype=np.uint8)
        return np.unpackbits(bits, count=count).astype(bool)


class ExportPlan(BaseModel):
    """All that workers need, as JSON in the store beside the chips.

    Attributes:
        label_sets: vector labels, prepared for the items.
        item_labels: for each item and role, the index of its label set.
        labels: what a person wants to know of the labels: counts, field, coordinate system.
    """

    model_config = ConfigDict(frozen=True)

    folder_uri: str
    run_key: str
    name: str
    parameters: ExportParameters
    items: list[ExportItem]
    label_sets: list[LabelSet]
    item_labels: list[dict[str, int]]
    parts: list[ExportPart]
    classes: list[dict[str, Any]]
    instance_classes: list[dict[str, Any]]
    labels: dict[str, Any]
    label_identities: dict[str, str]
    notes: list[str]

    @property
    def chips(self) -> int:
        """Number of chips of the whole export."""
        return sum(part.chips for part in self.parts)

    @property
    def schema_of_classes(self) -> ClassSchema:
        """The classes."""
        return ClassSchema.from_records(self.classes)

    @property
    def schema_of_instances(self) -> ClassSchema | None:
        """The classes of the instance data."""
        return ClassSchema.from_records(self.instance_classes) if self.instance_classes else None

    @property
    def sides(self) -> list[str]:
        """The folders that are each a whole export; one nameless side for most formats."""
        return list(dict.fromkeys(item.side for item in self.items))


def make_plan(store: ObjectStore, parameters: ExportParameters, inputs: Inputs) -> ExportPlan:
    """Read the labels and number the chips.

    Raises:
        LabelError: the labels cannot be used, or touch none of the imagery.
        BadInputError: the metadata format cannot hold their classes.
    """
    sets = LabelSets.prepare(store, parameters, inputs)
    format_of(parameters.metadata_format).check(
        Context(
            parameters.chip_format,
            None,
            ClassSchema.from_records(sets.classes),
            ClassSchema.from_records(sets.instance_classes) if sets.instance_classes else None,
        )
    )
    parts: list[ExportPart] = []
    numbers = dict.fromkeys((item.side for item in inputs.items), parameters.start_index)
    for index, item in enumerate(inputs.items):
        with sets.open_item(parameters, item, index) as sources:
            new = list(_parts(parameters, index, item, sources, numbers[item.side]))
        numbers[item.side] += sum(part.chips for part in new)
        parts += new
    if parameters.input_class_data and not sets.touch_imagery(inputs):
        raise LabelError(
            f"The labels {parameters.input_class_data} do not touch the imagery ({sets.where(inputs)}).",
            "Check that both show the same place, and that the labels' coordinate reference system is right.",
        )
    for side, number in numbers.items():
        if number == parameters.start_index:
            raise _no_chip(parameters, side)
    return ExportPlan(
        folder_uri=inputs.folder_uri,
        run_key=inputs.run_key,
        name=parameters.output_location.rstrip("/").rsplit("/", 1)[-1],
        parameters=parameters,
        items=inputs.items,
        label_sets=sets.sets,
        item_labels=sets.item_labels,
        parts=parts,
        classes=sets.classes,
        instance_classes=sets.instance_classes,
        labels=sets.facts,
        label_identities=inputs.label_identities,
        notes=[*inputs.notes, *sets.notes],
    )


def save_plan(store: ObjectStore, plan: ExportPlan) -> str:
    """Put the plan beside the chips and return its URI; what gives access to imagery lies apart."""
    uri = join(plan.folder_uri, PLAN)
    secrets: dict[str, str] = {}
    values = taken_out(json.loads(plan.model_dump_json()), secrets)
    save_access(store, plan.folder_uri, secrets)
    store.put(uri, json.dumps(values).encode(), content_type="application/json")
    return uri


def plan_in_force(store: ObjectStore, parameters: ExportParameters, inputs: Inputs) -> ExportPlan:
    """The plan of an earlier try of the same run, so that its finished parts stay good; else a new one.

    Inputs of the same content may have moved meanwhile: the addresses of today count.
    """
    try:
        earlier = load_plan(store, join(inputs.folder_uri, PLAN))
    except NotFoundError:
        return make_plan(store, parameters, inputs)
    return earlier.model_copy(update={"parameters": parameters, "items": inputs.items})


def load_plan(store: ObjectStore, uri: str, *, today: ExportParameters | None = None) -> ExportPlan:
    """The plan at ``uri``.

    Args:
        today: parameters of the same run in place of the plan's own, with what they hold of access.
    """
    data = store.get(uri)
    secrets = load_access(store, uri.removesuffix(f"/{PLAN}"))
    if today is not None:
        taken_out(today.model_dump(mode="json"), secrets)
    plan = ExportPlan.model_validate(put_back(json.loads(data), secrets)) if secrets else None
    plan = plan or ExportPlan.model_validate_json(data)
    return plan if today is None else plan.model_copy(update={"parameters": today})


def check_labels_unchanged(plan: ExportPlan) -> None:
    """Refuse labels that are no longer what the plan was made for.

    Raises:
        LabelError: they have changed.
    """
    now = label_identities(plan.parameters)
    changed = sorted(role for role, identity in plan.label_identities.items() if now.get(role) != identity)
    if changed:
        raise LabelError(
            f"The {', '.join(changed)} of the export have changed since it was planned.",
            "Start the export again; it will be a run of its own.",
        )


@dataclass
class _Strip:
    """Lanes of one tract that are gathered into a part."""

    firsts: list[int]
    chosen: list[npt.NDArray[np.bool_]]
    chips: int = 0


def _parts(
    parameters: ExportParameters, index: int, item: ExportItem, sources: ItemSources, number: int
) -> Iterator[ExportPart]:
    """The parts of an item, which all tracts begin and end at the same lanes."""
    candidates = Candidates(parameters, item, sources.labels, sources.bytes_per_pixel)
    positions = candidates.grid.positions * len(candidates.angles)
    if positions > _MOST_POSITIONS:
        raise BadInputError(
            f"{item.infos()[0].address} has {positions:,} chip positions, more than {_MOST_POSITIONS:,}.",
            "Bound the area by extent, or choose a larger stride_size.",
        )
    first_lane = 0
    rows = sources.piece()[0], sources.origin()[0]
    strips = [_Strip([], []) for _ in range(candidates.tracts)]
    for lane in range(candidates.lanes):
        for tract, strip in enumerate(strips):
            found = candidates.of(lane, tract)
            chosen = np.zeros(0, dtype=bool)
            if found:
                chosen = sources.choose([one.place for one in found], [one.feature for one in found])
            chips = int(np.count_nonzero(chosen))
            strip.firsts.append(number)
            strip.chosen.append(chosen)
            strip.chips += chips
            number += chips
        chips = max(strip.chips for strip in strips)
        full = chips >= parameters.chips_per_part
        # Parts end between rows of blocks, if one comes soon: no block is read for two of them then.
        waits = chips < _MOST_OF_PART * parameters.chips_per_part and not candidates.is_apart(lane, *rows)
        if (full and not waits) or lane == candidates.lanes - 1:
            for tract, strip in enumerate(strips):
                if strip.chips:
                    yield _part(index, tract, first_lane, strip)
            first_lane = lane + 1
            strips = [_Strip([], []) for _ in range(candidates.tracts)]


def _part(item: int, tract: int, lane: int, strip: _Strip) -> ExportPart:
    bits = np.packbits(np.concatenate(strip.chosen))
    return ExportPart(
        item=item,
        tract=tract,
        lane=lane,
        firsts=strip.firsts,
        chips=strip.chips,
        chosen=base64.b64encode(bits.tobytes()).decode("ascii"),
    )


def _no_chip(parameters: ExportParameters, side: str) -> LabelError:
    of_side = f" of side {side}" if side else ""
    if parameters.input_mask_polygons:
        return LabelError(
            f"No chip{of_side} lies completely inside the polygons of {parameters.input_mask_polygons}"
            + (" and holds a label." if parameters.input_class_data else "."),
            "Choose a smaller tile_size, or larger mask polygons.",
        )
    if parameters.min_polygon_overlap_ratio > 0:
        return LabelError(
            f"No chip{of_side} holds a label: all are left out by min_polygon_overlap_ratio "
            f"{parameters.min_polygon_overlap_ratio}.",
            "Lower min_polygon_overlap_ratio, or choose a larger tile_size.",
        )
    return LabelError(
        f"No chip{of_side} holds a label.",
        "Check the labels, or set output_nofeature_tiles to ALL_TILES.",
    )
