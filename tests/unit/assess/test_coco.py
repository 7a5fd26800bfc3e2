"""COCO's numbers, as its reference implementation computes them on the same predictions."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import shapely
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

from tasks.assess.objects import Detections, Truths, coco_precision

Part = tuple[Detections, Truths]


def boxes(corners: Any, sizes: Any) -> Any:
    """Rectangles from their upper left corners  # (n, 2), (n, 2) -> (n,)."""
    return np.atleast_1d(np.asarray(shapely.box(*corners.T, *(corners + sizes).T), dtype=object))


def scene(seed: int, pictures: int, crowd: int) -> tuple[list[Part], dict[str, Any], list[dict[str, Any]]]:
    """Random objects and detections near them, for both implementations."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": c} for c in (1, 2, 3)]}
    found: list[dict[str, Any]] = []
    parts = []
    for picture in range(1, pictures + 1):
        truth["images"].append({"id": picture, "width": 512, "height": 512})
        corners = rng.uniform(0, 400, (int(rng.integers(1, 9)), 2))
        sizes = rng.uniform(20, 90, corners.shape)
        classes = rng.integers(1, 3, len(corners))
        near = np.repeat(np.arange(len(corners)), crowd)
        moved = corners[near] + rng.normal(0, 6, (len(near), 2))
        scaled = sizes[near] * rng.uniform(0.8, 1.25, (len(near), 2))
        guessed = np.where(rng.random(len(near)) < 0.85, classes[near], 3 - classes[near])
        scores = rng.permutation(len(near)) / len(near) + rng.uniform(0, 1e-3, len(near))
        for (x, y), (w, h), c in zip(corners, sizes, classes, strict=True):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": picture,
                    "category_id": int(c),
                    "bbox": [float(x), float(y), float(w), float(h)],
                    "area": float(w * h),
                    "iscrowd": 0,
                }
            )
        for (x, y), (w, h), c, score in zip(moved, scaled, guessed, scores, strict=True):
            found.append(
                {
                    "image_id": picture,
                    "category_id": int(c),
                    "bbox": [float(x), float(y), float(w), float(h)],
                    "score": float(score),
                }
            )
        parts.append(
            (
                Detections(boxes(moved, scaled), guessed, scores),
                Truths(boxes(corners, sizes), classes, np.zeros(len(corners), bool)),
            )
        )
    return parts, truth, found


@pytest.mark.parametrize(
    ("seed", "pictures", "crowd", "most"), [(0, 12, 2, 100), (1, 3, 60, 100), (1, 3, 60, None)]
)
def test_the_numbers_are_those_of_pycocotools(seed: int, pictures: int, crowd: int, most: int | None) -> None:
    parts, truth, found = scene(seed, pictures, crowd)
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = COCO()
        oracle.dataset = truth
        oracle.createIndex()
        evaluation = COCOeval(oracle, oracle.loadRes(found), "bbox")
        evaluation.params.maxDets = [1, 10, most or 10_000]
        evaluation.evaluate()
        evaluation.accumulate()
    # (steps, recalls, classes, areas, most detections)
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    ours = coco_precision(parts, most=most)
    assert set(ours) == {1, 2}
    for value, number in ours.items():
        assert number == pytest.approx(float(precision[:, :, value - 1].mean()), abs=1e-9)
    everything = precision[:, :, :2]  # the third class has no truths
    assert np.mean(list(ours.values())) == pytest.approx(float(everything.mean()), abs=1e-9)
    assert coco_precision(parts, [0.5], most=most)[1] == pytest.approx(
        float(precision[0, :, 0].mean()), abs=1e-9
    )
    assert 0.05 < ours[1] < 0.95
