"""What changed between the objects of a series: which of them stayed, appeared, vanished.

Date by date: memory holds the objects of three dates (the first, the one before, this one), however long the
series is, and looks for partners through a spatial index, a few thousand objects at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tasks.infer.finish_features import layers_of, objects_of_grids, put_layer, with_origin, write_layer
from tasks.infer.items import layer_assets
from tasks.infer.layer import taken, to_pixels
from tasks.infer.outputs import Outputs
from tasks.infer.outputs_features import Features, FieldType, areas_m2, write_features
from tasks.infer.planned import Plan, PlannedGrid, output_name
from tasks.infer.polygons import canonical_order, normalised
from tasks.infer.series_rasters import put_tables
from tasks.infer.series_report import SeriesTables
from tasks.infer.shaping import shaped
from tasks.infer.stac import ResultAsset
from tasks.store import ObjectStore

APPEARED, VANISHED, STAYED = "APPEARED", "VANISHED", "STAYED"
CLASS_CHANGED, NOT_SEEN = "CLASS_CHANGED", "NOT_SEEN"

_AT_ONCE = 4096
_TRACKED: dict[str, FieldType] = {"track": "integer", "change": "text"}
_COMPARED: dict[str, FieldType] = {
    "change": "text",
    "from_date": "text",
    "to_date": "text",
    "from_class": "text",
    "to_class": "text",
    "iou": "real",
    "from_track": "integer",
    "to_track": "integer",
}


@dataclass(frozen=True)
class _Dated:
    """The objects of one date, in their canonical order, the numbers of their tracks, and their grid."""

    planned: PlannedGrid
    features: Features
    track: NDArray[np.int64]


@dataclass(frozen=True)
class Partners:
    """Objects of two dates that are one and the same: positions before and after, and their overlap."""

    before: NDArray[np.intp]
    after: NDArray[np.intp]
    iou: NDArray[np.float64]


@dataclass(frozen=True)
class _Comparison:
    """Partners of two dates, and what became of each object: of the earlier date, of the later one."""

    found: Partners
    before: list[str]
    after: list[str]


@dataclass
class _Series:
    tables: SeriesTables = field(default_factory=lambda: SeriesTables("objects"))
    assets: dict[str, ResultAsset] = field(default_factory=dict)


def write_object_series(store: ObjectStore, plan: Plan, outputs: Outputs, folder: Path) -> None:
    """Put a layer of objects per date into the result's folder, one of changes per pair of dates, and tables.

    Args:
        store: holds the shards.
        plan: of a detection by date.
        outputs: takes the files.
        folder: for files on their way.

    Raises:
        StoreError: a shard's result is missing, or the store cannot be written.
    """
    series = _Series()
    least = float(plan.finishing["series"]["min_iou"])
    first: _Dated | None = None
    before: _Dated | None = None
    tracks = 0
    for number, planned in enumerate(plan.grids):
        # Each date by itself: its own layer, suppressed by itself.
        of_date = plan.model_copy(update={"grids": [planned], "output": planned.name})
        layer, candidates = layers_of(of_date, objects_of_grids(store, plan, [number]))
        stays, outlines = shaped(layer.features.geometry, layer.crs_wkt, plan.finishing["layer"])
        features = _in_order(replace(taken(layer.features, stays), geometry=outlines))
        features = with_origin(plan, features)
        here = _Dated(planned, features, np.arange(len(features.geometry)) + tracks + 1)
        compared: _Comparison | None = None
        change: Sequence[str | None] = [None] * len(features.geometry)
        if before is not None:
            compared = _compared(before, here, least)
            here = _followed(before, here, compared.found, tracks)
            change = compared.after
        tracks = max([tracks, *here.track.tolist()])
        tracked = _with_columns(features, {"track": here.track.tolist(), "change": change}, _TRACKED)
        write_layer(of_date, layer, tracked, candidates, outputs, folder, {"date": planned.date})
        series.tables.dates += _by_class(plan, planned.date, features, layer.crs_wkt)
        if before is not None and compared is not None:
            _write_changes(plan, series, (before, here), compared, outputs, folder)
        first, before = first or here, here
    if first is not None and before is not None and len(plan.grids) > 2:
        _write_changes(plan, series, (first, before), _compared(first, before, least), outputs, folder)
    put_tables(plan, series.tables, series.assets, outputs)


def partners(before: NDArray[np.object_], after: NDArray[np.object_], least: float) -> Partners:
    """Which objects of two dates are one and the same.

    Pairs are taken from the largest intersection over union down to ``least``, each object once; equal
    overlaps go by the objects' order. Classes do not matter: an object may change its own.

    Args:
        before, after: polygons in one coordinate system.
        least: smallest intersection over union of a pair.
    """
    one, other = _valid(before), _valid(after)
    tree = shapely.STRtree(one)
    size_one, size_other = shapely.area(one), shapely.area(other)
    pairs: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]] = []
    for start in range(0, len(other), _AT_ONCE):
        second, first = tree.query(other[start : start + _AT_ONCE], predicate="intersects")
        second += start
        common = shapely.area(shapely.intersection(one[first], other[second]))
        union = size_one[first] + size_other[second] - common
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = common / union
        enough = iou >= least
        pairs.append((first[enough], second[enough], iou[enough]))
    none = np.empty(0, np.intp)
    firsts = np.concatenate([none, *(pair[0] for pair in pairs)])
    seconds = np.concatenate([none, *(pair[1] for pair in pairs)])
    overlaps = np.concatenate([np.empty(0), *(pair[2] for pair in pairs)])
    taken_before, taken_after = np.zeros(len(one), np.bool_), np.zeros(len(other), np.bool_)
    chosen = []
    for pair in np.lexsort((seconds, firsts, -overlaps)).tolist():
        first_one, second_one = firsts[pair], seconds[pair]
        if not (taken_before[first_one] or taken_after[second_one]):
            taken_before[first_one] = taken_after[second_one] = True
            chosen.append(pair)
    kept = np.array(sorted(chosen, key=lambda pair: int(seconds[pair])), np.intp)
    return Partners(firsts[kept], seconds[kept], overlaps[kept])


def seen_by(planned: PlannedGrid, geometry: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Whether the middle of an object lies on a raster of a date: elsewhere nothing can vanish or appear.

    Args:
        planned: the date's grid; its footprints are whole rasters, nodata inside of them counts as seen.
        geometry: on the map, in the grid's coordinate system.
    """
    top, left, rows, cols = planned.region
    places = [
        (max(col, left), max(row, top), min(col + width, left + cols), min(row + height, top + rows))
        for row, col, height, width in planned.footprints
    ]
    there = [place[0] < place[2] and place[1] < place[3] for place in places]
    boxes: Any = shapely.box(*np.array(places, np.float64).reshape(-1, 4)[there].T)
    on = np.zeros(len(geometry), np.bool_)
    centres = shapely.centroid(to_pixels(geometry, planned))
    on[shapely.STRtree(boxes).query(centres, predicate="intersects")[0]] = True
    return on


def _valid(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    made = np.array(geometry, dtype=object)
    wrong = ~shapely.is_valid(made)
    made[wrong] = shapely.make_valid(made[wrong])
    return made


def _in_order(features: Features) -> Features:
    """The features as their layer will hold them, so that tracks are numbered from north to south."""
    geometry = normalised(features.geometry) if len(features.geometry) else features.geometry
    order = canonical_order(geometry, list(features.class_name), features.confidence)
    return taken(replace(features, geometry=geometry), order)


def _compared(before: _Dated, after: _Dated, least: float) -> _Comparison:
    one, other = before.features, after.features
    found = partners(one.geometry, other.geometry, least)
    gone = [VANISHED if there else NOT_SEEN for there in seen_by(after.planned, one.geometry).tolist()]
    new = [APPEARED if there else NOT_SEEN for there in seen_by(before.planned, other.geometry).tolist()]
    for first, second in zip(found.before.tolist(), found.after.tolist(), strict=True):
        same = one.class_name[first] == other.class_name[second]
        gone[first] = new[second] = STAYED if same else CLASS_CHANGED
    return _Comparison(found, gone, new)


def _followed(before: _Dated, here: _Dated, found: Partners, tracks: int) -> _Dated:
    """This date with the tracks of the one before where objects stayed, and new ones from ``tracks`` on."""
    track = np.zeros(len(here.features.geometry), np.int64)
    track[found.after] = before.track[found.before]
    new = track == 0
    track[new] = np.arange(int(new.sum())) + tracks + 1
    return replace(here, track=track)


def _write_changes(
    plan: Plan,
    series: _Series,
    pair: tuple[_Dated, _Dated],
    compared: _Comparison,
    outputs: Outputs,
    folder: Path,
) -> None:
    """A layer of the later date's objects and of those that are no more, each with what became of it."""
    before, after = pair
    dates = (before.planned.date, after.planned.date)
    crs_wkt = after.planned.crs_wkt
    partner = np.full(len(after.features.geometry), -1)
    overlap = np.full(len(after.features.geometry), np.nan)
    partner[compared.found.after], overlap[compared.found.after] = compared.found.before, compared.found.iou
    gone = np.setdiff1d(np.arange(len(before.features.geometry)), compared.found.before)
    lost = taken(before.features, gone)
    names = list(before.features.class_name)
    from_class = [names[index] if index >= 0 else None for index in partner.tolist()] + list(lost.class_name)
    to_class = [*after.features.class_name, *(None for _ in gone)]
    tracks = before.track.tolist()
    columns: dict[str, Sequence[Any]] = {
        "change": [*compared.after, *(compared.before[index] for index in gone.tolist())],
        "from_date": [dates[0]] * len(to_class),
        "to_date": [dates[1]] * len(to_class),
        "from_class": from_class,
        "to_class": to_class,
        "iou": [*overlap.tolist(), *(None for _ in gone)],
        "from_track": [
            *(tracks[index] if index >= 0 else None for index in partner.tolist()),
            *(tracks[index] for index in gone.tolist()),
        ],
        "to_track": [*after.track.tolist(), *(None for _ in gone)],
    }
    features = replace(
        after.features,
        geometry=np.concatenate([after.features.geometry, lost.geometry]),
        class_name=[*after.features.class_name, *lost.class_name],
        class_value=[*after.features.class_value, *lost.class_value],
        confidence=np.concatenate([after.features.confidence, lost.confidence]),
        source_raster=[*after.features.source_raster, *lost.source_raster],
        source_date=[*after.features.source_date, *lost.source_date],
        extra=columns,
        extra_types=_COMPARED,
    )
    name = f"{output_name(plan.output)}_changes_{dates[0]}_{dates[1]}"
    wishes = plan.finishing["layer"]
    files = write_features(folder, name, crs_wkt, features, wishes["output_formats"])
    described = {"content": "changes", "from_date": dates[0], "to_date": dates[1]}
    put_layer(outputs, name, crs_wkt, files, described)
    for key, asset in layer_assets(name, f"Changes from {dates[0]} to {dates[1]}", wishes).items():
        series.assets[f"changes_{dates[0]}_{dates[1]}_{key}"] = asset
    series.tables.changes += _by_change(features, columns, crs_wkt)


def _by_class(plan: Plan, date: str, features: Features, crs_wkt: str) -> list[dict[str, Any]]:
    """Objects and their areas by class, of classes without an object, too."""
    values: dict[str, int | None] = {item.name: item.value for item in plan.package.classes}
    found = {name: [0, 0.0] for name in [*values, *features.class_name]}
    for name, area in zip(features.class_name, areas_m2(features.geometry, crs_wkt), strict=True):
        found[name][0] += 1
        found[name][1] += area or 0.0
    return [
        {
            "date": date,
            "Classvalue": values.get(name),
            "Class": name,
            "objects": int(count),
            "area_m2": round(area, 6),
        }
        for name, (count, area) in found.items()
    ]


def _by_change(features: Features, columns: dict[str, Sequence[Any]], crs_wkt: str) -> list[dict[str, Any]]:
    """Objects and their areas by what became of them and by the classes before and after."""
    named = ("from_date", "to_date", "change", "from_class", "to_class")
    found: dict[tuple[Any, ...], list[float]] = {}
    rows = zip(*(columns[name] for name in named), strict=True)
    for row, area in zip(rows, areas_m2(features.geometry, crs_wkt), strict=True):
        amount = found.setdefault(row, [0, 0.0])
        amount[0] += 1
        amount[1] += area or 0.0
    ordered = sorted(found.items(), key=lambda item: tuple(str(part or "") for part in item[0]))
    return [
        {**dict(zip(named, row, strict=True)), "objects": int(count), "area_m2": round(area, 6)}
        for row, (count, area) in ordered
    ]


def _with_columns(
    features: Features, columns: dict[str, Sequence[Any]], types: dict[str, FieldType]
) -> Features:
    """The features with further columns, which go before the function's own of the same name."""
    own = {name.lower() for name in columns}
    extra = {name: values for name, values in features.extra.items() if name.lower() not in own}
    extra_types = {name: kind for name, kind in features.extra_types.items() if name.lower() not in own}
    return replace(features, extra={**extra, **columns}, extra_types={**extra_types, **types})
