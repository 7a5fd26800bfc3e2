"""Which class is taken for which, of detected objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tasks.assess.objects import Detections, Matches, Truths, match_objects

BACKGROUND = "background"


def object_confusion(
    parts: Sequence[tuple[Detections, Truths, Matches]],
    min_iou: float,
    classes: Sequence[int],
    *,
    least_score: float = -np.inf,
) -> npt.NDArray[np.int64]:
    """Objects by true (rows) and detected class (columns); the last row and column are the background.

    What matched within its class is on the diagonal, which is the table's true positives. Detections and
    truths that are left are matched once more, across classes: those are confusions. What is left then was
    found where nothing is (last row) or missed (last column).

    Args:
        parts: detections, truths and their matches within classes, per picture.
        min_iou: least IoU of a match.
        classes: class values, in the order of rows and columns.
        least_score: detections below it are left out.

    Returns:
        counts  # (classes + 1, classes + 1)
    """
    counts = np.zeros((len(classes) + 1, len(classes) + 1), np.int64)
    place = {value: index for index, value in enumerate(classes)}
    nothing = len(classes)

    def add(true: int | None, found: int | None) -> None:
        row, column = (nothing if value is None else place[value] for value in (true, found))
        counts[row, column] += 1

    for detections, truths, matches in parts:
        # A detector may answer with a label that is no class: its background, which no tool passes on.
        known = np.isin(detections.classes, classes)
        sure = matches.counted & known & (matches.scores >= least_score)
        hits = np.flatnonzero(sure & (matches.truth >= 0))
        for value in truths.classes[matches.truth[hits]].tolist():
            add(value, value)
        missed = matches.truth_counted.copy()
        missed[matches.truth[hits]] = False
        left, lost = np.flatnonzero(sure & (matches.truth < 0)), np.flatnonzero(missed)
        across = match_objects(
            Detections(detections.geometries[left], np.zeros(len(left), np.int64), matches.scores[left]),
            Truths(truths.geometries[lost], np.zeros(len(lost), np.int64), np.zeros(len(lost), bool)),
            min_iou,
        )
        for index, truth in zip(left.tolist(), across.truth.tolist(), strict=True):
            true = int(truths.classes[lost[truth]]) if truth >= 0 else None
            add(true, int(detections.classes[index]))
        for value in truths.classes[lost[~across.found]].tolist():
            add(value, None)
    return counts
