"""Oracle: the procedure written down naively, pair by pair."""

import time
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from tasks.errors import BadInputError
from tasks.infer.suppression import suppress


def naive(geometries: Any, confidences: Any, classes: Any, ratio: float) -> list[bool]:
    order = sorted(range(len(geometries)), key=lambda index: -confidences[index])

    def overlap(one: int, other: int) -> float:
        both = geometries[one].intersection(geometries[other]).area
        return float(both / geometries[one].union(geometries[other]).area)

    def greedy(candidates: list[int]) -> list[int]:
        kept: list[int] = []
        for index in candidates:
            if all(overlap(index, other) <= ratio for other in kept):
                kept.append(index)
        return kept

    first: set[int] = set()
    for kind in set(classes):
        first.update(greedy([index for index in order if classes[index] == kind]))
    second = set(greedy([index for index in order if index in first]))
    return [index in second for index in range(len(geometries))]


def boxes_at(low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.object_]:
    return np.array([shapely.box(*corner) for corner in np.hstack([low, high]).tolist()], dtype=object)


def shapes(kind: str, count: int, seed: int) -> NDArray[np.object_]:
    chooser = np.random.default_rng(seed)
    corners = chooser.integers(0, 40, (count, 2))
    sizes = chooser.integers(1, 12, (count, 2))
    if kind == "grid boxes":  # many shared edges
        return boxes_at(corners, corners + sizes)
    if kind == "mixed":
        discs = [
            shapely.Point(x, y).buffer(size / 2) for (x, y), (size, _) in zip(corners, sizes, strict=True)
        ]
        result = boxes_at(corners, corners + sizes)
        result[::2] = discs[::2]
        return result
    points = chooser.random((count, 6, 2)) * 12 + corners[:, None]
    return np.array([shapely.MultiPoint(one).convex_hull for one in points], dtype=object)


@pytest.mark.parametrize("kind", ["grid boxes", "mixed", "hulls"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_does_what_the_procedure_says(kind: str, ratio: float, seed: int) -> None:
    geometries = shapes(kind, 70, seed)
    chooser = np.random.default_rng(seed + 100)
    confidences = chooser.integers(0, 12, 70) / 12  # with ties
    classes = chooser.choice(["oak", "pine", "fir"], 70)
    stays = suppress(geometries, confidences, classes, max_overlap_ratio=ratio)
    assert stays.tolist() == naive(geometries, confidences, classes, ratio)


def boxes(*corners: tuple[float, float, float, float]) -> NDArray[np.object_]:
    return np.array([shapely.box(*corner) for corner in corners], dtype=object)


def test_what_was_removed_removes_nothing() -> None:
    chain = boxes((0, 0, 10, 10), (4, 0, 14, 10), (8, 0, 18, 10))
    assert suppress(chain, np.array([0.9, 0.8, 0.7]), max_overlap_ratio=0.2).tolist() == [True, False, True]
    # Removed within its class, so it cannot remove the other class's object.
    kept = suppress(chain, np.array([0.9, 0.8, 0.7]), ["a", "a", "b"], max_overlap_ratio=0.2)
    assert kept.tolist() == [True, False, True]


def test_classes_are_compared_after_each_class_by_itself() -> None:
    pair = boxes((0, 0, 10, 10), (1, 0, 11, 10))
    assert suppress(pair, np.array([0.5, 0.9]), ["a", "b"]).tolist() == [False, True]


def test_more_than_the_ratio_and_not_the_ratio_itself() -> None:
    half = boxes((0, 0, 10, 10), (0, 0, 10, 5))
    assert suppress(half, np.array([1.0, 0.5]), max_overlap_ratio=0.5).all()
    assert not suppress(half, np.array([1.0, 0.5]), max_overlap_ratio=0.499).all()


def test_touching_is_no_overlap_even_in_large_coordinates() -> None:
    border = 4978000.1
    lower = shapely.box(528000.1, 4978000.0, 528000.2, float(np.nextafter(border, np.inf)))
    upper = shapely.box(528000.1, border, 528000.2, 4978000.2)
    assert suppress(np.array([lower, upper], dtype=object), np.full(2, 0.5)).all()


def test_ties_go_to_the_first() -> None:
    pair = boxes((0, 0, 10, 10), (0, 0, 10, 10))
    assert suppress(pair, np.array([0.5, 0.5])).tolist() == [True, False]


def test_broken_rings_are_measured_too() -> None:
    bow = shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])
    geometries = np.array([shapely.box(0, 0, 4, 4), bow], dtype=object)
    assert suppress(geometries, np.array([1.0, 0.5]), max_overlap_ratio=0.4).tolist() == [True, False]
    assert suppress(geometries, np.array([1.0, 0.5]), max_overlap_ratio=0.6).tolist() == [True, True]


def test_bad_values_and_nothing() -> None:
    nothing = np.empty(0, dtype=object)
    assert suppress(nothing, np.empty(0), []).tolist() == []
    with pytest.raises(BadInputError, match="no confidence"):
        suppress(boxes((0, 0, 1, 1)), np.array([np.nan]))
    for ratio in (-0.1, 1.0):
        with pytest.raises(BadInputError, match="max_overlap_ratio"):
            suppress(nothing, np.empty(0), max_overlap_ratio=ratio)


def test_a_hundred_thousand_boxes_take_seconds() -> None:
    chooser = np.random.default_rng(0)
    corners = chooser.random((100_000, 2)) * 3000
    geometries = boxes_at(corners, corners + 8)
    start = time.perf_counter()
    stays = suppress(geometries, chooser.random(100_000), chooser.choice(["a", "b"], 100_000))
    assert time.perf_counter() - start < 15
    left = geometries[stays]
    one, _ = shapely.STRtree(left).query(left, predicate="intersects")
    assert len(one) == len(left)  # only with themselves
    assert 10_000 < len(left) < 100_000
