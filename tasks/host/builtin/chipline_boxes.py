"""Boxes that a network found in the chips of a block, as the objects of the block.

Runs in the host's child; see ``chipline_builtin.py``.
"""

from __future__ import annotations

from typing import Any

import chipline_builtin as builtin
import numpy as np

_SAME_OBJECT = 0.5  # overlap (intersection over union) of one object's boxes in two chips
_NEAR = 8  # pixels: two chips may place one object's centre on either side of the line between them


def objects(
    definition: builtin.Definition,
    tiles: builtin.Tiles,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    chips: np.ndarray,
) -> dict[str, str]:
    """What ``vectorize`` gives for boxes of all chips of a block.

    Args:
        definition: names the classes.
        tiles: how the block was cut.
        boxes: (n, 4) ymin, xmin, ymax, xmax in pixels of their chips.
        scores: (n,) as they are to be reported.
        labels: (n,) number of the class, from 1, in the order of the definition's Classes.
        chips: (n,) number of the chip, as ``tiles.places`` lists them.
    """
    places = np.array(tiles.places(), dtype=np.float64)  # (chips, 2) row, col
    found = boxes.astype(np.float64).reshape(-1, 4) + np.tile(places[chips], 2)
    features: list[dict[str, Any]] = []
    for place in _once(tiles, found, scores, labels, chips):
        top, left, bottom, right = (found[place] - tiles.padding).tolist()
        ring = [[left, top], [right, top], [right, bottom], [left, bottom]]
        name = definition.class_name(int(labels[place]))
        features.append(builtin.feature(len(features) + 1, name, float(scores[place]), [ring]))
    answer: dict[str, str] = builtin.feature_set(features)
    return answer


def _once(
    tiles: builtin.Tiles, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, chips: np.ndarray
) -> list[int]:
    """Indices of the boxes that stay: each object once, though the chips of a block overlap.

    A chip answers for the objects whose centre lies in its inner part, or outside the inner block, where the
    host settles what neighbouring blocks saw.
    """
    if tiles.side == 1:
        return list(range(len(boxes)))
    near = float(min(_NEAR, tiles.padding))
    inner = np.array([tiles.inner_rows, tiles.inner_cols], dtype=np.float64)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - tiles.padding
    cell = np.array(tiles.places(), dtype=np.float64)[chips] / inner  # (n, 2) place in the grid
    first, last = cell == 0, cell == tiles.side - 1
    low = np.where(first, -np.inf, cell * inner - near)
    high = np.where(last, np.inf, (cell + 1) * inner + near)
    own = ((centre >= low) & (centre < high)).all(axis=1)
    kept: list[int] = []
    for place in np.argsort(-scores, kind="stable").tolist():
        rivals = [item for item in kept if chips[item] != chips[place] and labels[item] == labels[place]]
        if own[place] and not (_overlaps(boxes[place], boxes[rivals]) > _SAME_OBJECT).any():
            kept.append(place)
    return sorted(kept)


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with others, (n, 4) of ymin, xmin, ymax, xmax."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.clip(sides, 0, None).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    result: np.ndarray = common / np.maximum(areas - common, 1e-9)
    return result
