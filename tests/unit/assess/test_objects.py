from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve as sklearn_curve

from tasks.assess.objects import (
    Detections,
    Matches,
    Truths,
    average_precision,
    best_f1,
    coco_precision,
    match_objects,
    precision_recall_curve,
    score_matches,
    score_objects,
)

Case = tuple[Detections, Truths]


def boxes(rows: list[tuple[float, ...]]) -> np.ndarray:
    array = np.array(rows, float).reshape(-1, 4)
    return np.asarray(shapely.box(*array.T), dtype=object)


def detections(
    rows: list[tuple[float, ...]], scores: list[float], classes: list[int] | None = None
) -> Detections:
    values = np.ones(len(rows), np.int64) if classes is None else np.array(classes, np.int64)
    return Detections(boxes(rows), values, np.array(scores, float))


def truths(
    rows: list[tuple[float, ...]], classes: list[int] | None = None, ignored: list[bool] | None = None
) -> Truths:
    values = np.ones(len(rows), np.int64) if classes is None else np.array(classes, np.int64)
    return Truths(boxes(rows), values, np.array(ignored or [False] * len(rows), bool))


def random_case(seed: int, size: int = 40) -> Case:
    """Boxes on a coarse raster of coordinates, so that equal overlaps and equal scores happen."""
    random = np.random.default_rng(seed)

    def some(count: int) -> np.ndarray:
        corner = random.integers(0, 30, (count, 2))
        return np.hstack([corner, corner + random.integers(1, 8, (count, 2))]).astype(float)

    count, true = random.integers(0, size, 2)
    found = Detections(
        boxes(some(count).tolist()), random.integers(1, 3, count), random.integers(0, 12, count) / 10
    )
    there = Truths(boxes(some(true).tolist()), random.integers(1, 3, true), random.random(true) < 0.15)
    return found, there


def brute_force(found: Detections, there: Truths, min_iou: float) -> tuple[list[int], list[bool]]:
    """The definition, word for word: every detection against every truth."""
    taken: set[int] = set()
    matched = [-1] * len(found.geometries)
    counted = [True] * len(found.geometries)
    for d in sorted(range(len(matched)), key=lambda d: (-found.scores[d], d)):
        best, best_iou, near_ignored = -1, 0.0, False
        for t, truth in enumerate(there.geometries):
            if there.classes[t] != found.classes[d]:
                continue
            union = found.geometries[d].union(truth).area
            iou = found.geometries[d].intersection(truth).area / union
            if iou <= 0 or iou < min_iou - 1e-9:
                continue
            if there.ignored[t]:
                near_ignored = True
            elif t not in taken and iou > best_iou + 1e-12:
                best, best_iou = t, iou
        matched[d] = best
        taken.add(best)
        counted[d] = best >= 0 or not near_ignored
    return matched, counted


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_matches_are_those_of_the_definition(seed: int, min_iou: float) -> None:
    found, there = random_case(seed)
    matches = match_objects(found, there, min_iou)
    matched, counted = brute_force(found, there, min_iou)
    assert matches.truth.tolist() == matched
    assert matches.counted.tolist() == counted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40), st.integers(0, 5))
def test_the_curve_is_scikit_learns_and_ap_the_area_below_its_envelope(
    rows: list[tuple[int, bool]], missed: int
) -> None:
    scores = np.array([score for score, _ in rows], float)
    hits = np.array([hit for _, hit in rows])
    count = int(hits.sum()) + missed
    if count == 0:
        assert math.isnan(average_precision(scores, hits, count))
        return
    precision, recall, confidence = precision_recall_curve(scores, hits, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, their_recall, thresholds = sklearn_curve(hits, scores)
    assert np.allclose(precision, theirs[:-1][::-1])
    assert np.allclose(confidence, thresholds[::-1])
    if hits.any():
        assert np.allclose(recall, their_recall[:-1][::-1] * hits.sum() / count)
    # At every step of recall: the best precision there or beyond.
    area = 0.0
    for step in range(count):
        beyond = precision[recall > (step + 0.5) / count]
        area += (beyond.max() if len(beyond) else 0.0) / count
    assert average_precision(scores, hits, count) == pytest.approx(area)


def test_weights_count_as_repetitions() -> None:
    random = np.random.default_rng(3)
    scores, hits = random.random(30), random.random(30) < 0.6
    weights = random.integers(0, 4, 30)
    repeated = np.repeat(np.arange(30), weights)
    once = average_precision(scores, hits, 40, weights.astype(float))
    assert once == pytest.approx(average_precision(scores[repeated], hits[repeated], 40))


def test_a_worked_example() -> None:
    # Three truths; two are found, the third is not, one detection repeats the first and one is far away.
    there = truths([(0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)])
    found = detections([(0, 0, 10, 8), (0, 0, 10, 10), (20, 0, 30, 6), (70, 0, 80, 10)], [0.9, 0.8, 0.7, 0.6])
    scores = score_objects(found, there, 0.5).by_class[1]
    # The most confident takes the first truth, although the second fits it better.
    assert (scores.true_positive, scores.false_positive, scores.false_negative) == (2, 2, 1)
    assert scores.precision == 0.5
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(4 / 7)
    assert scores.ap == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    strict = score_objects(found, there, 0.7).by_class[1]
    assert (strict.true_positive, strict.false_negative) == (1, 2)


def test_all_classes_sum_counts_and_average_ap() -> None:
    there = truths([(0, 0, 1, 1), (5, 5, 6, 6), (9, 9, 10, 10)], [1, 2, 2])
    found = detections([(0, 0, 1, 1), (5, 5, 6, 6), (20, 20, 21, 21)], [0.9, 0.8, 0.7], [1, 2, 3])
    scores = score_objects(found, there, 0.5)
    assert sorted(scores.by_class) == [1, 2, 3]
    assert (scores.by_class[1].ap, scores.by_class[2].ap) == (1.0, 0.5)
    assert math.isnan(scores.by_class[3].ap)
    assert scores.all.ap == 0.75
    assert (scores.all.true_positive, scores.all.false_positive, scores.all.false_negative) == (2, 1, 1)
    assert scores.all.recall == pytest.approx(2 / 3)


def test_another_class_is_no_match() -> None:
    scores = score_objects(detections([(0, 0, 1, 1)], [1.0], [2]), truths([(0, 0, 1, 1)], [1]), 0.1)
    assert scores.all.true_positive == 0
    assert scores.by_class[1].false_negative == scores.by_class[2].false_positive == 1


@pytest.mark.parametrize(
    ("found", "there", "precision", "recall", "f1", "ap"),
    [
        ([], [(0, 0, 1, 1)], math.nan, 0.0, 0.0, 0.0),
        ([(0, 0, 1, 1)], [], 0.0, math.nan, 0.0, math.nan),
        ([], [], math.nan, math.nan, math.nan, math.nan),
    ],
)
def test_nothing_found_and_nothing_there(
    found: list[tuple[float, ...]],
    there: list[tuple[float, ...]],
    precision: float,
    recall: float,
    f1: float,
    ap: float,
) -> None:
    matches = match_objects(detections(found, [0.5] * len(found)), truths(there), 0.5)
    scores = score_matches(matches, [1]).all
    assert np.array_equal(
        [scores.precision, scores.recall, scores.f1, scores.ap], [precision, recall, f1, ap], True
    )


def test_an_unknown_confidence_comes_last() -> None:
    there = truths([(0, 0, 10, 10), (20, 0, 30, 10)])
    found = detections([(0, 0, 10, 10), (20, 0, 30, 10), (50, 0, 60, 10)], [math.nan, 0.5, 0.1])
    assert score_objects(found, there, 0.5).all.ap == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_ignored_truths_are_neither_missed_nor_found() -> None:
    there = truths([(0, 0, 10, 10), (20, 0, 30, 10)], ignored=[False, True])
    found = detections(
        [(0, 0, 10, 10), (20, 0, 30, 10), (20, 0, 30, 9), (50, 0, 60, 10)], [0.9, 0.8, 0.7, 0.6]
    )
    scores = score_objects(found, there, 0.5).all
    assert (scores.true_positive, scores.false_positive, scores.false_negative) == (1, 1, 0)


def test_optional_detections_count_only_when_they_match() -> None:
    there = truths([(0, 0, 10, 10)])
    found = detections([(0, 0, 10, 10), (50, 0, 60, 10), (70, 0, 80, 10)], [0.5, 0.9, 0.8])
    optional = Detections(found.geometries, found.classes, found.scores, np.array([True, True, False]))
    scores = score_objects(optional, there, 0.5).all
    assert (scores.true_positive, scores.false_positive, scores.ap) == (1, 1, 0.5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_areas_that_lie_apart_can_be_matched_apart(seed: int) -> None:
    parts, moved = [], []
    for index in range(3):
        found, there = random_case(seed + index, 15)
        parts.append((found, there))

        def move(geometries: np.ndarray, shift: float = 1000.0 * index) -> np.ndarray:
            return np.asarray(shapely.transform(geometries, lambda xy: xy + shift), dtype=object)

        moved.append(
            (
                Detections(move(found.geometries), found.classes, found.scores),
                Truths(move(there.geometries), there.classes, there.ignored),
            )
        )
    apart = score_matches(Matches.joined([match_objects(*part, 0.3) for part in parts]))
    names = (("geometries", "classes", "scores"), ("geometries", "classes", "ignored"))
    columns = [
        [np.concatenate([getattr(pair[side], name) for pair in moved]) for name in names[side]]
        for side in (0, 1)
    ]
    whole = score_objects(Detections(*columns[0]), Truths(*columns[1]), 0.3)
    assert repr(apart) == repr(whole)


def test_average_precision_over_ious() -> None:
    # IoU 0.72: found at 0.50 to 0.70, five of ten steps.
    case = (detections([(0, 0, 10, 7.2)], [0.9]), truths([(0, 0, 10, 10)]))
    assert coco_precision([case]) == {1: pytest.approx(0.5)}


def test_the_best_f1_and_where_it_is() -> None:
    precision, recall, confidence = precision_recall_curve(
        np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, False]), 2
    )
    assert best_f1(precision, recall, confidence) == (1.0, 0.8)
    assert all(math.isnan(value) for value in best_f1(np.zeros(0), np.zeros(0), np.zeros(0)))


def test_the_same_objects_match_at_an_iou_of_one() -> None:
    found, _ = random_case(5)
    same = Truths(found.geometries, found.classes, np.zeros(len(found.classes), bool))
    matches = match_objects(found, same, 1.0)
    assert (matches.truth >= 0).all()
