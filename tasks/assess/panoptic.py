"""Panoptic quality: how well each pixel is told to which object it belongs, or to which class without any.

Kirillov et al., "Panoptic Segmentation", 2019. A segment that was found and a true one of the same class
match when they share more than half of their union, so that each has one partner at most. The quality of a
class is the sum of the IoU of its pairs over the number of pairs and half of the segments without a partner.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.assess.objects import ratio

Ints = npt.NDArray[np.int64]

VOID = 0
"""Segment of pixels that are not assessed: unknown in the truth, left open in what was found."""

_CODE = 1 << 32


def panoptic_counts(
    found: Ints, truth: Ints, pixels: Ints, *, found_classes: Ints, true_classes: Ints, classes: int
) -> npt.NDArray[np.float64]:
    """Sum of the pairs' IoU, number of pairs, of segments found in vain and of missed ones  # (classes, 4).

    Pixels that are unknown in the truth are in no union, and a segment that lies mostly there is no mistake.

    Args:
        found, truth: numbers of the segments, from 1, that groups of pixels belong to; :data:`VOID` for none
            # (groups,)
        pixels: of each group  # (groups,)
        found_classes, true_classes: from 0, of segments 1, 2, …
        classes: how many there are.
    """
    table, where = np.unique(truth * _CODE + found, return_inverse=True)
    shared = np.bincount(where.ravel(), weights=pixels, minlength=len(table))
    known = truth != VOID
    sizes = np.bincount(found, weights=pixels, minlength=len(found_classes) + 1)
    seen = np.bincount(found[known], weights=pixels[known], minlength=len(found_classes) + 1)
    true_sizes = np.bincount(truth, weights=pixels, minlength=len(true_classes) + 1)
    counts = np.zeros((classes, 4))
    paired, met = np.zeros(len(sizes), bool), np.zeros(len(true_sizes), bool)
    for code, area in zip(table.tolist(), shared.tolist(), strict=True):
        true, ours = divmod(code, _CODE)
        if VOID in (true, ours) or true_classes[true - 1] != found_classes[ours - 1]:
            continue
        iou = area / (true_sizes[true] + seen[ours] - area)
        if iou > 0.5:
            paired[ours] = met[true] = True
            counts[true_classes[true - 1], :2] += (iou, 1)
    vain = (sizes > 0) & ~paired & (seen >= sizes / 2)
    missed = (true_sizes > 0) & ~met
    np.add.at(counts[:, 2], found_classes[vain[1:]], 1)
    np.add.at(counts[:, 3], true_classes[missed[1:]], 1)
    return counts


def panoptic_quality(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of each class, from sums of :func:`panoptic_counts`; NaN for a class without segments  # (classes,)."""
    return np.array([ratio(total, pairs + (vain + missed) / 2) for total, pairs, vain, missed in counts])
