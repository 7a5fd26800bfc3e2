"""Chips that partly show the same ground, told by their pixels, where nobody knows where they lie.

Chips that overlap share whole rectangles of equal pixels, at any offset. Small windows are compared by a hash
that rolls over the chip (Karp and Rabin 1987, along both axes); which of them are kept follows from the hash
itself, so that both chips keep the same ones (Manber 1994, "Finding similar files in a large file system").
What the hashes say is then compared pixel by pixel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]  # (bands, rows, cols)
Keys = npt.NDArray[np.uint64]

# Edge of a window, pixels: a power of two.
WINDOW_PX = 16
# Of a chip's windows one in this many is kept, fewer of large chips: about a thousand of each.
_LEAST_RATE = 64
_WINDOWS_PER_CHIP = 1024
# Ground without texture looks alike in many places: of a window's neighbouring pixels so many must differ.
_TEXTURE = 0.5
# Share of the common rectangle that must be equal; of a lossless picture it is all of it.
_EQUAL = 0.5
_TRIED = 3  # offsets that are compared pixel by pixel

_ROW_BASE, _COLUMN_BASE = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F  # odd, of about as many ones as zeros
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_WORD = 1 << 64


class Overlaps:
    """Windows of chips, to be looked up; memory is some 20 kB per chip.

    Args:
        read: the pixels of a chip that was added, by its number.
    """

    def __init__(self, read: Callable[[int], Pixels]) -> None:
        self._read = read
        self._rate: int | None = None
        self._added: list[tuple[Keys, npt.NDArray[np.int32]]] = []
        self._sorted: tuple[Keys, npt.NDArray[np.int32]] | None = None

    def add(self, number: int, pixels: Pixels) -> None:
        """Take a chip."""
        keys, places = self._windows(pixels)
        numbered = np.concatenate([np.full((len(keys), 1), number, np.int32), places], axis=1)
        self._added.append((keys, numbered))
        self._sorted = None

    def shares(self, pixels: Pixels) -> bool:
        """Whether a chip shows a part of what a chip that was added shows, in the same position."""
        known, places = self._index()
        if not len(known):
            return False
        keys, here = self._windows(pixels)
        found = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        same = known[found] == keys
        there = places[found[same]]
        offsets = zip(there[:, 0].tolist(), *(there[:, 1:] - here[same]).T.tolist(), strict=True)
        votes = Counter(offsets)
        return any(
            _equal(pixels, self._read(number), down, right)
            for (number, down, right), _ in votes.most_common(_TRIED)
        )

    def _index(self) -> tuple[Keys, npt.NDArray[np.int32]]:
        if self._sorted is None:
            keys = np.concatenate([np.zeros(0, np.uint64), *(item[0] for item in self._added)])
            places = np.concatenate([np.zeros((0, 3), np.int32), *(item[1] for item in self._added)])
            order = np.argsort(keys, kind="stable")
            self._sorted = keys[order], places[order]
            self._added = [self._sorted]
        return self._sorted

    def _windows(self, pixels: Pixels) -> tuple[Keys, npt.NDArray[np.int32]]:
        """Hashes of the kept windows with texture, and (row, col) of their first pixels  # (n,), (n, 2)"""
        if self._rate is None:  # of the first chip, and from then on the same for all
            self._rate = max(_LEAST_RATE, pixels[0].size // _WINDOWS_PER_CHIP)
        if min(pixels.shape[1:]) < WINDOW_PX:
            return np.zeros(0, np.uint64), np.zeros((0, 2), np.int32)
        values = _as_words(pixels)
        hashes = _rolled(_rolled(values, _ROW_BASE), _COLUMN_BASE, axis=0) * _MIX
        places = np.argwhere(hashes < np.uint64(_WORD // self._rate))
        windows = np.lib.stride_tricks.sliding_window_view(values, (WINDOW_PX, WINDOW_PX))
        chosen = windows[places[:, 0], places[:, 1]]  # (n, rows, cols)
        textured = np.ones(len(places), bool)
        for axis in (1, 2):
            textured &= (np.diff(chosen, axis=axis) != 0).mean(axis=(1, 2)) >= _TEXTURE
        places = places[textured]
        return hashes[places[:, 0], places[:, 1]], places.astype(np.int32)


def _as_words(pixels: Pixels) -> Keys:
    """One word per pixel, of all its bands  # (rows, cols)"""
    if pixels.dtype.kind == "f":
        pixels = pixels.view(np.dtype(f"u{pixels.dtype.itemsize}"))
    words = np.zeros(pixels.shape[1:], np.uint64)
    for band in pixels:
        words = (words ^ (words >> np.uint64(29)) ^ band.astype(np.uint64)) * _MIX
    return words ^ (words >> np.uint64(32))


def _rolled(values: Keys, base: int, axis: int = 1) -> Keys:
    """The hash of every run of ``WINDOW_PX`` values along an axis, modulo 2^64, by doubling."""
    values = np.moveaxis(values, axis, -1)
    length = 1
    while length < WINDOW_PX:
        factor = np.uint64(pow(base, length, _WORD))
        values = values[..., :-length] * factor + values[..., length:]
        length *= 2
    return np.moveaxis(values, -1, axis)


def _equal(here: Pixels, there: Pixels, down: int, right: int) -> bool:
    """Whether a chip equals another one where both show the same, if its origin lies so far in the other."""
    if here.dtype != there.dtype or len(here) != len(there):
        return False
    ours, theirs = [], []
    for offset, length, other in zip((down, right), here.shape[1:], there.shape[1:], strict=True):
        start, stop = max(0, -offset), min(length, other - offset)
        ours.append(slice(start, stop))
        theirs.append(slice(start + offset, stop + offset))
    same = (here[:, *ours] == there[:, *theirs]).all(axis=0)
    return bool(same.mean() >= _EQUAL)
