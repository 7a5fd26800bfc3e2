"""Whether confidences are what they say: the expected calibration error (Guo et al., 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.assess.objects import ratio

BINS = 15


class Calibration:
    """Counts, confidences and hits in 15 bins of equal width; grows batch by batch."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS)
        self.confidence = np.zeros(BINS)
        self.hits = np.zeros(BINS)

    def add(self, confidence: npt.NDArray[Any], right: npt.NDArray[Any]) -> None:
        """Add predictions.

        Args:
            confidence: of each, 0 to 1  # (n,)
            right: whether it is right  # (n,)
        """
        # A bin holds its upper edge, as in the paper.
        place = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(np.intp) - 1, 0, BINS - 1)
        self.counts += np.bincount(place, minlength=BINS)
        self.confidence += np.bincount(place, weights=confidence.astype(np.float64), minlength=BINS)
        self.hits += np.bincount(place, weights=right.astype(np.float64), minlength=BINS)

    @property
    def error(self) -> float:
        """The mean distance of confidence and share of hits, weighted by the bins' counts; NaN of nothing."""
        return ratio(float(np.abs(self.confidence - self.hits).sum()), float(self.counts.sum()))

    def bins(self) -> list[dict[str, float]]:
        """Of every bin that holds predictions: mean confidence, share of right ones, count."""
        return [
            {"confidence": sure / count, "share_right": hits / count, "count": count}
            for sure, hits, count in zip(
                self.confidence.tolist(), self.hits.tolist(), self.counts.tolist(), strict=True
            )
            if count
        ]
