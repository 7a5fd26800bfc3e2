"""How chips are divided into those that are learnt from and those that validate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.errors import TrainingDataError
from tasks.train.images import split_sides
from tasks.train.leakage import Leakage, find_leakage, refuse_leakage, without
from tasks.train.parameters import IMAGE_KINDS, TrainParameters
from tasks.train.splits import Footprint, Split, check_no_leak, split_by_lot, split_spatially
from tasks.training_data import Chip, TrainingData, read_boxes, read_class_mask, read_instances

# Reading the labels of more chips, only to balance the split, would take too long.
_WEIGHED_CHIPS = 5000


def divide(
    parameters: TrainParameters, data: Sequence[TrainingData], apart: Sequence[TrainingData] = ()
) -> tuple[Split, Leakage]:
    """Which chips are learnt from, and which training chips had to go because they leaked.

    Indices count the chips of ``data``, then those of ``apart``, in their order.

    Args:
        apart: chips to validate on; empty: compact areas of ``data`` are kept aside, or, of chips that are
            labelled as a whole and of which none has a place, some by lot.

    Raises:
        TrainingDataError: chips that cannot be divided, or a given division that leaks.
    """
    chips = [chip for item in (*data, *apart) for chip in item.chips]
    placed = common_footprints([*data, *apart])
    if apart:
        given = sum(len(item.chips) for item in data)
        split = Split(tuple(range(given)), tuple(range(given, len(chips))), (), by="folder")
        leakage = find_leakage(chips, placed, split)
        refuse_leakage(leakage, given)
        return split, leakage
    known = [footprint for footprint in placed if footprint is not None]
    if not known and parameters.kind == "labels":
        groups = [chip.values for chip in chips]
        split = split_by_lot(groups, parameters.validation_percent, seed=parameters.seed)
    elif len(known) < len(chips):
        raise TrainingDataError(
            f"{len(chips) - len(known)} of {len(chips)} chips have no georeference, so that a spatial split "
            f"of {', '.join(str(item.folder) for item in data)} is not possible.",
            "Export the chips with world files, or name chips of other ground as validation_folder.",
        )
    elif parameters.kind == "cycle":
        share, seed = parameters.validation_percent, parameters.seed
        split = split_sides(chips, known, lambda places: split_spatially(places, share, seed=seed))
        check_no_leak(known, split)
    else:
        weighed = len(chips) <= _WEIGHED_CHIPS
        amounts = [_label_amount(chip, parameters) for chip in chips] if weighed else None
        split = split_spatially(known, parameters.validation_percent, seed=parameters.seed, amounts=amounts)
        check_no_leak(known, split)
    leakage = find_leakage(chips, placed, split)
    return without(split, leakage), leakage


def common_footprints(data: Sequence[TrainingData]) -> list[Footprint | None]:
    """The footprints of all chips in the coordinate system of the first folder.

    None where a chip has none, or where it is not known how its system lies to the first one.
    """
    wkid = data[0].wkid
    found: list[Footprint | None] = []
    for item in data:
        places = [chip.footprint for chip in item.chips]
        if item.wkid != wkid:
            places = _projected(places, item.wkid, wkid) if item.wkid and wkid else [None] * len(places)
        found += places
    return found


def _projected(places: Sequence[Footprint | None], own: int, common: int) -> list[Footprint | None]:
    from pyproj import Transformer
    from pyproj.exceptions import CRSError

    try:
        project = Transformer.from_crs(own, common, always_xy=True)
    except CRSError:  # a system of Esri's that PROJ does not know by its number
        return [None] * len(places)
    result: list[Footprint | None] = []
    for place in places:
        bounds = None if place is None else project.transform_bounds(*place)
        result.append(bounds if bounds is not None and np.isfinite(bounds).all() else None)
    return result


def _label_amount(chip: Chip, parameters: TrainParameters) -> float:
    """Objects, or labelled pixels."""
    if parameters.kind == "objects":
        return float(len(read_boxes(chip)))
    if parameters.kind in ("instances", "panoptic"):
        return float(sum(np.count_nonzero(np.unique(layer)) for layer in read_instances(chip).values()))
    if parameters.kind == "labels" or parameters.kind in IMAGE_KINDS:
        return 1.0
    return float(np.count_nonzero(read_class_mask(chip)))
