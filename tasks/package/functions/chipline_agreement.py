"""How far two execution engines agree on a sample of tiles, and what that makes sure of for all others.

This file travels inside packages beside ``chipline_engines.py`` and needs numpy alone. What is asked is an
agreement on the whole work, and what can be had is a sample of its tiles. So an engine is judged by the lower
end of an interval, not by the sample's own value: tiles are drawn again, with replacement, two thousand
times (the bootstrap, tile by tile, since pixels of one tile err together), and the agreement must hold in 99
of 100 draws. A sample grows until its interval lies on one side of what is asked.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Bumped when a comparison comes to another verdict on the same tiles: kept verdicts of before are left.
GATE_VERSION = 2
# An engine is used where it agrees with torch in float32 to at least this (mean IoU), with this certainty.
LEAST_AGREEMENT = 0.999
CERTAINTY = 0.99
# The IoU of a class with fewer pixels than this says little; the rare ones count together.
LEAST_PIXELS = 1000
# Tiles after which a clear verdict is enough; a sample that is not clear doubles, as far as there are tiles.
FIRST_LOOK = 16
_DRAWS = 2000


class Sample:
    """The chips of blocks in batches, normalised when they are asked for.

    Args:
        blocks: (bands, rows, cols) with their padding; chips that hold nothing but 0 are left out.
    """

    def __init__(self, network: Any, tiles: Any, blocks: list[np.ndarray]) -> None:
        self._network, self._size = network, tiles.at_once
        self._chips = [
            chip for block in blocks for _, chips in tiles.batches(block) for chip in chips if chip.any()
        ]

    def __len__(self) -> int:
        return int(-(-len(self._chips) // self._size))

    def __getitem__(self, number: int) -> Any:
        chosen = self._chips[number * self._size : (number + 1) * self._size]
        if not chosen:
            raise IndexError(number)
        return self._network.normalised(np.stack(chosen))


class Judged:
    """What a sample says.

    Attributes:
        point: the sample's own agreement, 0-1.
        low, high: ends of the interval that it lies in with ``CERTAINTY`` on either side.
        tiles: number of tiles.
        size: number of pixels, or of objects.
        classes: IoU by class, where the judge knows classes.
    """

    def __init__(
        self,
        point: float,
        low: float,
        high: float,
        tiles: int,
        size: int,
        classes: dict[str, float] | None = None,
    ) -> None:
        self.point, self.low, self.high = point, low, high
        self.tiles, self.size, self.classes = tiles, size, classes or {}

    @property
    def passes(self) -> bool:
        """Whether the engine may compute."""
        return self.low >= LEAST_AGREEMENT

    @property
    def clear(self) -> bool:
        """Whether more tiles would hardly change the verdict."""
        return self.passes or self.high < LEAST_AGREEMENT

    def report(self, unit: str) -> dict[str, Any]:
        """As it goes on record."""
        found = {
            "agreement": self.point,
            "at_least": self.low,
            "certainty": CERTAINTY,
            "tiles": self.tiles,
            unit: self.size,
        }
        return {**found, "by_class": self.classes} if self.classes else found

    def words(self) -> str:
        """Why it does not pass."""
        if self.point < LEAST_AGREEMENT:
            return f"{self.point:.5f} only ({self.tiles} tiles); {LEAST_AGREEMENT} is asked"
        return (
            f"{self.point:.5f} on {self.tiles} tiles, which makes sure of {self.low:.5f} only; "
            f"{LEAST_AGREEMENT} is asked with a certainty of {CERTAINTY:.0%}"
        )


class Classes:
    """Compares engines by the class of each pixel.

    Args:
        names: what each score stands for, in order; their numbers without.
    """

    unit = "pixels"

    def __init__(self, names: list[Any] | None = None) -> None:
        self._names = names

    def answers(self, run: Any, images: Any) -> Any:
        """Class numbers (n, rows, cols) of normalised images: the highest of one tensor of logits."""
        return run(images)[0].max(dim=1).indices.cpu().numpy().astype(np.uint16)

    def compare(self, wanted: np.ndarray, found: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per image the pixels of each class that both give, and that either gives."""
        return [_shared(one, other) for one, other in zip(wanted, found)]  # noqa: B905

    def judged(self, entries: list[tuple[np.ndarray, np.ndarray]]) -> Judged:
        """By the mean IoU of the classes, the rare ones as one, or the part of pixels that agree, if less."""
        kinds = max((len(right) for right, _ in entries), default=0)
        right, union = np.zeros((2, len(entries), kinds))
        for number, (one, other) in enumerate(entries):
            right[number, : len(one)], union[number, : len(other)] = one, other
        total = union.sum(axis=0)
        told, rare = total >= LEAST_PIXELS, (total > 0) & (total < LEAST_PIXELS)
        groups = [*np.flatnonzero(told)[:, None].tolist()]
        if total[rare].sum() >= LEAST_PIXELS:
            groups.append(np.flatnonzero(rare).tolist())
        member = np.zeros((kinds, len(groups)))
        for number, group in enumerate(groups):
            member[group, number] = 1
        pixels = (right.sum(axis=1) + union.sum(axis=1)) / 2

        def score(weights: np.ndarray) -> np.ndarray:
            both, either = weights @ right, weights @ union
            same = both.sum(axis=1) / np.maximum(weights @ pixels, 1)
            if not groups:
                return same  # type: ignore[no-any-return]
            grouped = either @ member
            # A class may be in none of the tiles that were drawn.
            iou = np.divide(both @ member, grouped, out=np.ones_like(grouped), where=grouped > 0)
            mean = iou.sum(axis=1, where=grouped > 0) / np.maximum((grouped > 0).sum(axis=1), 1)
            return np.minimum(same, mean)  # type: ignore[no-any-return]

        sums = right.sum(axis=0)
        names = self._names if self._names is not None and len(self._names) >= kinds else list(range(kinds))
        classes = {str(names[index]): float(sums[index] / total[index]) for index in np.flatnonzero(total)}
        return _judged(score, len(entries), int(pixels.sum()), classes)


def _shared(wanted: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kinds = 1 + max(int(wanted.max()), int(found.max())) if wanted.size else 0
    right = np.bincount(wanted[wanted == found].ravel(), minlength=kinds)
    union = np.bincount(wanted.ravel(), minlength=kinds) + np.bincount(found.ravel(), minlength=kinds) - right
    return right, union


def ratio(right: np.ndarray, every: np.ndarray) -> Judged:
    """What tiles say of which ``right`` (tiles,) of ``every`` (tiles,) objects are the same."""

    def score(weights: np.ndarray) -> np.ndarray:
        # Where nothing was drawn, nothing differs.
        most = weights @ every
        return np.divide(weights @ right, most, out=np.ones_like(most), where=most > 0)  # type: ignore[no-any-return]

    return _judged(score, len(every), int(every.sum()))


def _judged(score: Any, tiles: int, size: int, classes: dict[str, float] | None = None) -> Judged:
    if tiles == 0:
        return Judged(1.0, 1.0, 1.0, 0, 0)
    point = float(score(np.ones((1, tiles)))[0])
    # The same tiles have the same verdict.
    draws = np.random.default_rng(0).multinomial(tiles, np.full(tiles, 1 / tiles), size=_DRAWS)
    low, high = np.quantile(score(draws.astype(np.float64)), [1 - CERTAINTY, CERTAINTY]).tolist()
    return Judged(point, min(low, point), max(high, point), tiles, size, classes)
