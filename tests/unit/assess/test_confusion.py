"""Confusions of objects: the diagonal is the table's true positives; every object is counted once."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from tasks.assess.confusion import object_confusion
from tasks.assess.objects import Detections, Matches, Truths, match_objects, score_matches

Part = tuple[Detections, Truths, Matches]


def boxes(corners: list[tuple[float, float]]) -> np.ndarray:
    return np.array([shapely.box(x, y, x + 10, y + 10) for x, y in corners], dtype=object)


def test_a_case_by_hand() -> None:
    truths = Truths(
        boxes([(0, 0), (20, 0), (40, 0), (60, 0)]), np.array([1, 1, 2, 2]), np.array([False] * 3 + [True])
    )
    found = Detections(
        boxes([(0, 0), (20, 1), (40, 0), (80, 80), (60, 0)]),
        np.array([1, 2, 2, 1, 2]),
        np.array([0.9, 0.8, 0.2, 0.7, 0.9]),
    )
    part = (found, truths, match_objects(found, truths, 0.5))
    # 1 found; 1 taken for 2; 2 found; 1 found where nothing is. The ignored truth counts nowhere.
    assert object_confusion([part], 0.5, [1, 2]).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    # Above 0.5 the third truth is missed.
    assert object_confusion([part], 0.5, [1, 2], least_score=0.5).tolist() == [
        [1, 1, 0],
        [0, 0, 1],
        [1, 0, 0],
    ]


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_truths_columns_detections_the_diagonal_hits(seed: int) -> None:
    random = np.random.default_rng(seed)
    parts: list[Part] = []
    for _ in range(4):
        there = random.uniform(0, 100, (12, 2))
        near = np.vstack([there + random.normal(0, 2, there.shape), random.uniform(0, 100, (5, 2))])
        truths = Truths(boxes(list(map(tuple, there))), random.integers(1, 4, 12), random.random(12) < 0.2)
        guess = np.where(
            random.random(17) < 0.6, np.append(truths.classes, [1] * 5), random.integers(1, 4, 17)
        )
        found = Detections(boxes(list(map(tuple, near))), guess, random.random(17))
        parts.append((found, truths, match_objects(found, truths, 0.4)))
    counts = object_confusion(parts, 0.4, [1, 2, 3])
    joined = Matches.joined([part[2] for part in parts])
    scores = score_matches(joined, [1, 2, 3])
    for place, value in enumerate([1, 2, 3]):
        assert counts[place, place] == scores.by_class[value].true_positive
        assert counts[place].sum() == (joined.truth_classes[joined.truth_counted] == value).sum()
        assert counts[:, place].sum() == (joined.classes[joined.counted] == value).sum()
    assert counts[3, 3] == 0
    assert counts[:3, :3].sum() > np.trace(counts)
