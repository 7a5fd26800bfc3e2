"""Every object once and whole, although neighbouring tiles see the same strip of imagery twice.

The tile whose inner part holds an object's centroid owns it. Two tiles may see slightly different outlines
of one object and disagree about the owner: both claim it, or neither does. So tiles also keep objects whose
centroid lies a little outside of their inner part, and this pass settles the strips along the tile borders:

* objects of different tiles that overlap by more than ``SAME_OBJECT_IOU`` may be the same object;
* of owned objects of one class that are the same, the best stays;
* an object that its tile does not own is dropped, except where no owned object is the same but another
  tile's unowned one is: then each tile thought that the other one owns it, and the best stays.

"Best" is the highest confidence, then the first tile, then the geometry, so that the outcome depends on the
tiles alone. The pass is always on, and is not Non Maximum Suppression: objects of one tile are never
compared. It sweeps down the grid and keeps only objects in memory that a later tile may still meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import shapely
from numpy.typing import NDArray

from tasks.infer.objects import Objects, no_objects
from tasks.infer.shards import TileGeometry

SAME_OBJECT_IOU = 0.5


def border_margin(geometry: TileGeometry) -> float:
    """Pixels on both sides of a tile border within which two tiles may disagree about the owner.

    Half the halo: an object within it is still seen whole by both tiles, up to the halo's size.
    """
    return geometry.padding / 2


def reconciled(rows: Iterable[tuple[int, Objects]], geometry: TileGeometry) -> Iterator[Objects]:
    """Objects that are reported, from the objects of all shards of one grid.

    Args:
        rows: for each row of shards from top to bottom, the first tile row below it, and its objects.
        geometry: tile sizes.

    Yields:
        Tables in which every object is settled; sorted by tile within each table.
    """
    open_objects = no_objects()
    for next_tile_row, objects in rows:
        free = objects.owned & ~objects.at_border
        strip = Objects.joined([open_objects, objects.take(~free)]).in_order()
        # Tiles below can see this far up; further than the halo only where an outline leaves its block.
        reach = next_tile_row * geometry.rows - 2 * geometry.padding - border_margin(geometry)
        settled, open_objects = _settle(strip, reach)
        yield Objects.joined([objects.take(free), settled]).in_order()
    settled, _ = _settle(open_objects, np.inf)
    yield settled


def _settle(strip: Objects, reach: float) -> tuple[Objects, Objects]:
    """Winners among the groups that no later tile can touch, and all objects of the other groups."""
    if len(strip) == 0:
        return strip, strip
    first, second = _same_object_pairs(strip)
    # Here alone: parts need this module too, and never come here.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(len(strip), len(strip)))
    count, group = connected_components(links, directed=False)
    still_open = np.zeros(count, np.bool_)
    lowest = shapely.bounds(strip.geometry)[:, 3]
    still_open[group[lowest >= reach]] = True
    waits = still_open[group]
    keep = _winners(strip, first, second) & ~waits
    return strip.take(keep), strip.take(waits)


def _same_object_pairs(strip: Objects) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    tree = shapely.STRtree(strip.geometry)
    first, second = tree.query(strip.geometry, predicate="intersects")
    other_tile = (strip.tile_row[first] != strip.tile_row[second]) | (
        strip.tile_col[first] != strip.tile_col[second]
    )
    once = (first < second) & other_tile
    first, second = first[once], second[once]
    one, two = strip.geometry[first], strip.geometry[second]
    common = shapely.area(shapely.intersection(one, two))
    union = shapely.area(one) + shapely.area(two) - common
    same = common > SAME_OBJECT_IOU * union
    return first[same], second[same]


def _winners(strip: Objects, first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.bool_]:
    keep = strip.owned.copy()
    neighbours: dict[int, list[int]] = {}
    for one, two in zip(first.tolist(), second.tolist(), strict=True):
        neighbours.setdefault(one, []).append(two)
        neighbours.setdefault(two, []).append(one)
    # ``strip`` is in canonical order, so that a stable sort by confidence settles every tie.
    ranked = sorted(neighbours, key=lambda item: (-strip.confidence[item], item))
    for item in ranked:
        if keep[item]:
            for other in neighbours[item]:
                if strip.owned[other] and strip.class_name[other] == strip.class_name[item]:
                    # Later ones only: an earlier one that is kept would have removed this one.
                    keep[other] = False
    unowned = [item for item in ranked if not strip.owned[item]]
    candidates = {item for item in unowned if not any(strip.owned[other] for other in neighbours[item])}
    for item in unowned:
        if item in candidates:
            keep[item] = True
            candidates.difference_update(neighbours[item])
    return keep
