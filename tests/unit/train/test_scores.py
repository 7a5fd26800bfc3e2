"""Validation values: known cases, and per-class numbers that agree with a count by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn import metrics

from tasks.assess.objects import Matches, match_objects
from tasks.labels import ClassSchema
from tasks.train.scores import chip_objects, label_scores, pixel_scores, score_chips

SCHEMA = ClassSchema.from_values({3: "Round", 7: "Square"})


Corners = tuple[float, float, float, float]


def boxes(corners: Sequence[Corners]) -> torch.Tensor:
    return torch.tensor(list(corners), dtype=torch.float32).reshape(-1, 4)


def chip(found: Sequence[tuple[Corners, int, float]], truth: Sequence[tuple[Corners, int]]) -> Matches:
    part = chip_objects(
        {
            "boxes": boxes([item[0] for item in found]),
            "labels": torch.tensor([item[1] for item in found], dtype=torch.int64),
            "scores": torch.tensor([item[2] for item in found]),
        },
        {
            "boxes": boxes([item[0] for item in truth]),
            "labels": torch.tensor([item[1] for item in truth], dtype=torch.int64),
        },
        rows=200,
        cols=200,
    )
    return match_objects(*part, 0.5)


def test_boxes_of_one_chip_never_match_objects_of_another() -> None:
    square = (20.0, 20.0, 30.0, 30.0)
    apart = [chip([(square, 1, 0.9)], []), chip([], [(square, 1)])]
    together = [chip([(square, 1, 0.9)], [(square, 1)])]
    assert score_chips(apart, SCHEMA)[0]["AVERAGE_PRECISION"] == 0.0
    assert score_chips(together, SCHEMA)[0]["AVERAGE_PRECISION"] == 1.0


@pytest.mark.parametrize(
    "cut",
    [(0.0, 50.0, 4.0, 90.0), (50.0, 0.0, 90.0, 4.0), (196.0, 50.0, 200.0, 90.0), (50.0, 196.0, 90.0, 200.0)],
)
def test_objects_that_the_chips_edge_cuts_are_not_assessed(cut: Corners) -> None:
    square = (20.0, 20.0, 30.0, 30.0)
    truth = [(square, 1), (cut, 1)]
    for found in ([(square, 1, 0.5)], [(cut, 1, 0.9), (square, 1, 0.5)]):
        values, per_class = score_chips([chip(found, truth)], SCHEMA)
        assert values["AVERAGE_PRECISION"] == 1.0
        assert per_class["Round"]["objects"] == 1


def test_the_threshold_is_where_f1_is_largest() -> None:
    truth = [((20.0 * i + 5, 5.0, 20.0 * i + 15, 15.0), 1) for i in range(4)]
    right = [(corners, 1, score) for (corners, _), score in zip(truth, (0.9, 0.8, 0.7, 0.2), strict=True)]
    wrong = [((5.0 + 20 * i, 100.0, 15.0 + 20 * i, 110.0), 1, 0.5 - 0.01 * i) for i in range(6)]
    values, per_class = score_chips([chip([*right, *wrong], truth)], SCHEMA)
    assert values["THRESHOLD"] == pytest.approx(0.7)
    assert values["F1_SCORE"] == pytest.approx(2 * 1.0 * 0.75 / 1.75)
    assert (values["PRECISION"], values["RECALL"]) == (1.0, 0.75)
    assert per_class["Round"]["precision"] == 1.0
    assert per_class["Round"]["recall"] == 0.75
    assert per_class["Round"]["objects"] == 4
    assert math.isnan(per_class["Square"]["ap"])
    assert values["AVERAGE_PRECISION"] == per_class["Round"]["ap"]


def test_chips_without_anything_give_no_number_but_a_usable_threshold() -> None:
    values, per_class = score_chips([chip([], [])], SCHEMA)
    assert math.isnan(values["AVERAGE_PRECISION"])
    assert values["THRESHOLD"] == 0.5
    assert per_class["Round"]["f1"] == 0.0


def test_pixel_values_leave_out_the_background_and_absent_classes() -> None:
    confusion = np.array([[90, 5, 0], [10, 20, 0], [0, 0, 0]])
    values, per_class = pixel_scores(confusion, SCHEMA)
    assert values["ACCURACY"] == pytest.approx(110 / 125)
    assert values["MIOU"] == pytest.approx(20 / 35)
    assert values["F1_SCORE"] == pytest.approx(40 / 55)
    assert list(per_class) == ["Background", "Round", "Square"]
    assert per_class["Background"]["iou"] == pytest.approx(90 / 105)
    assert math.isnan(per_class["Square"]["iou"])


def test_pixel_values_are_scikit_learns() -> None:
    random = np.random.default_rng(0)
    truth, found = random.integers(0, 3, 400), random.integers(0, 2, 400)  # class 2 is there, never found
    confusion = metrics.confusion_matrix(truth, found, labels=[0, 1, 2])
    values, _ = pixel_scores(confusion, SCHEMA)
    expected = metrics.precision_recall_fscore_support(
        truth, found, labels=[1, 2], average="macro", zero_division=0
    )
    assert [values["PRECISION"], values["RECALL"]] == pytest.approx(expected[:2])
    assert values["DICE"] == values["F1_SCORE"] == pytest.approx(expected[2])


@pytest.mark.parametrize("several", [True, False])
def test_values_of_labels_are_scikit_learns(several: bool) -> None:
    random = np.random.default_rng(1)
    truth = random.random((60, 2)) < 0.4
    if not several:
        truth[:, 1] = ~truth[:, 0]
    scores = random.random((60, 2)).astype(np.float32)
    values, _ = label_scores(scores, truth, SCHEMA, several=several)
    found = scores >= 0.5 if several else np.eye(2, dtype=bool)[scores.argmax(axis=1)]
    each = metrics.precision_recall_fscore_support(truth, found, average="macro", zero_division=0)
    assert [values["PRECISION"], values["RECALL"], values["F1_SCORE"]] == pytest.approx(each[:3])
    whole = metrics.fbeta_score(truth, found, beta=2, average="micro")
    assert values["MULTI_LABEL_FBETA"] == pytest.approx(whole)
    never, _ = label_scores(np.zeros((60, 2), np.float32), truth, SCHEMA, several=True)
    assert (never["PRECISION"], never["RECALL"], never["MULTI_LABEL_FBETA"]) == (0, 0, 0)
