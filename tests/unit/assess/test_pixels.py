from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, precision_recall_fscore_support

from tasks.assess.pixels import ConfusionMatrix


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(0, 1, 2), (1, 7, 255), (0, 300, 70000), (-5, 0, 3)]))
def test_against_scikit_learn_and_in_any_cut(seed: int, values: tuple[int, ...]) -> None:
    random = np.random.default_rng(seed)
    truth, prediction = random.choice(values, (2, 24, 18))
    valid = random.random((24, 18)) < 0.8
    matrix = ConfusionMatrix()
    rows = sorted(random.integers(0, 24, 3).tolist())
    for start, stop in zip([0, *rows], [*rows, 24], strict=True):
        part = ConfusionMatrix()
        part.accumulate(truth[start:stop], prediction[start:stop], valid[start:stop])
        matrix.add(part)
    t, p = truth[valid], prediction[valid]
    assert np.array_equal(matrix.matrix(values), confusion_matrix(t, p, labels=values))
    precision, recall, f1, support = precision_recall_fscore_support(
        t, p, labels=values, zero_division=np.nan
    )
    iou = jaccard_score(t, p, labels=values, average=None)
    scores = matrix.scores()
    for index, value in enumerate(values):
        mine = scores[value]
        assert mine.precision == pytest.approx(precision[index])
        assert mine.recall == pytest.approx(recall[index])
        assert mine.f1 == pytest.approx(f1[index])
        assert mine.iou == pytest.approx(iou[index])
        assert mine.truth_pixels == support[index]
    assert matrix.overall_accuracy == pytest.approx(accuracy_score(t, p))


def test_a_class_that_occurs_nowhere_has_no_scores() -> None:
    matrix = ConfusionMatrix([0, 1])
    matrix.accumulate(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    scores = matrix.scores()
    assert math.isnan(scores[1].iou)
    assert math.isnan(scores[1].f1)
    assert scores[0].iou == 1.0


def test_no_pixels_at_all() -> None:
    matrix = ConfusionMatrix()
    matrix.accumulate(np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8), np.zeros((2, 2), bool))
    assert matrix.values == ()
    assert matrix.scores() == {}
    assert math.isnan(matrix.overall_accuracy)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shape"):
        ConfusionMatrix().accumulate(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
