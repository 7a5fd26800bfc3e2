"""Accuracy of pictures that a network makes, against those that are there.

PSNR is ``10 log10(1 / mse)`` of values that span 0 to 1 over the range of a band, of all pixels together;
SSIM (Wang et al., 2004) is the mean over chips, of each band apart; L1 is the mean absolute error in the
units of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.assess.bootstrap import Floats, block_bootstrap
from tasks.assess.chips import ALL, LEVEL, REPLICATES, Intervals

_MEASURES = ("l1", "psnr", "ssim")
_EXACT = 1e-10  # mse of pictures that agree: 100 dB


@dataclass(frozen=True)
class PictureErrors:
    """Errors of chips, each # (chips, bands).

    Attributes:
        squared: sum over the pixels, of values scaled to 0-1.
        absolute: the same of the absolute error.
        pixels: how many count.
        similarity: SSIM.
        spans: of each band, the range that was scaled to 0-1, in the units of its pixels  # (bands,)
    """

    squared: Floats
    absolute: Floats
    pixels: Floats
    similarity: Floats
    spans: Floats

    @classmethod
    def joined(cls, parts: Sequence[PictureErrors]) -> PictureErrors:
        """Those of all batches."""

        def of_all(name: str) -> Floats:
            return np.concatenate([getattr(part, name) for part in parts])

        return cls(
            of_all("squared"), of_all("absolute"), of_all("pixels"), of_all("similarity"), parts[0].spans
        )

    def scores(self, names: Sequence[str]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """L1, PSNR and SSIM of all bands together, and by the name of each band."""
        table = _measured(self._sums(np.zeros(len(self.squared), np.int64))[0], self.spans)
        rows = {
            name: dict(zip(_MEASURES, map(float, row), strict=True))
            for name, row in zip([*names, ALL], table, strict=True)
        }
        return rows.pop(ALL), rows

    def intervals(self, blocks: npt.NDArray[np.int64], names: Sequence[str]) -> Intervals:
        """By a bootstrap over blocks of ground; ``blocks``: of each chip  # (chips,)"""
        sums = self._sums(blocks)
        found = block_bootstrap(
            len(sums),
            lambda weights: _measured(np.tensordot(weights, sums, axes=1), self.spans).ravel(),
            replicates=REPLICATES,
            level=LEVEL,
        )
        ends = np.stack([found.low, found.high], axis=-1).reshape(len(names) + 1, len(_MEASURES), 2)
        return {
            name: {key: (float(low), float(high)) for key, (low, high) in zip(_MEASURES, row, strict=True)}
            for name, row in zip([*names, ALL], ends, strict=True)
        }

    def worst(self) -> Floats:
        """Mean absolute error of each chip, of values scaled to 0-1  # (chips,)"""
        return np.asarray(self.absolute.sum(axis=1) / np.maximum(self.pixels.sum(axis=1), 1))

    def _sums(self, blocks: npt.NDArray[np.int64]) -> Floats:
        """By block and band: squared and absolute errors, pixels, SSIM, chips  # (blocks, bands, 5)"""
        ones = np.ones_like(self.similarity)
        layers = np.stack([self.squared, self.absolute, self.pixels, self.similarity, ones], axis=-1)
        sums = np.zeros((int(blocks.max(initial=-1)) + 1, *layers.shape[1:]))
        np.add.at(sums, blocks, layers)
        return sums


def _measured(sums: Floats, spans: Floats) -> Floats:
    """L1, PSNR and SSIM of each band, and then of all, from sums (bands, 5)  # (bands + 1, 3)"""
    squared, absolute, pixels, similarity, chips = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        l1, ssim = absolute / pixels * spans, similarity / chips
        error = np.append(squared, squared.sum()) / np.append(pixels, pixels.sum())
    psnr = -10.0 * np.log10(np.maximum(error, _EXACT))
    return np.stack([np.append(l1, l1.mean()), psnr, np.append(ssim, ssim.mean())], axis=1)
