"""Lines one pixel wide, from the areas that a network takes for lines.

This file travels inside packages beside ``ChiplineImageClassifier.py``. It needs torch alone.
"""

from __future__ import annotations

import torch
from torch.nn import functional

# Neighbours of a pixel, clockwise from the one above: row and column of each in a frame of 3 x 3.
_AROUND = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))
REACH = 2
"""Pixels that one round looks away: what is further than ``REACH * rounds`` does not change the result."""


def thinned(lines: torch.Tensor, rounds: int) -> torch.Tensor:
    """Areas worn down from all sides towards their middle lines, which keep their connections.

    Each round takes off one pixel from either side; an area that is wider than twice ``rounds`` keeps a core.
    What is connected stays connected (by sides or corners), and nothing vanishes. Outside of the picture
    there is no line.

    Source: Guo and Hall, "Parallel Thinning with Two-Subiteration Algorithms", 1989 (A1).

    Args:
        lines: bool (n, rows, cols), on any device.
        rounds: at most so many, of two halves each.

    Returns:
        bool (n, rows, cols), True only where ``lines`` is.
    """
    left = lines
    for _ in range(rounds):
        before = left
        for half in (0, 1):
            left = left & ~_outer(left, half)
        if torch.equal(before, left):
            break
    return left


def _outer(lines: torch.Tensor, half: int) -> torch.Tensor:
    """Which pixels one half of a round takes off."""
    rows, cols = lines.shape[-2:]
    frame = functional.pad(lines, (1, 1, 1, 1), value=False)
    above, right_up, right, right_down, below, left_down, left, left_up = (
        frame[..., row : row + rows, col : col + cols] for row, col in _AROUND
    )
    # How many separate parts the line has around the pixel.
    parts = (~above & (right_up | right)).to(torch.uint8)
    for side, corner, following in (
        (right, right_down, below),
        (below, left_down, left),
        (left, left_up, above),
    ):
        parts += ~side & (corner | following)
    # How many neighbours, counted in pairs in both ways; the smaller count tells the ends of lines.
    one, other = torch.zeros_like(parts), torch.zeros_like(parts)
    for first, second in ((left_up, above), (right_up, right), (right_down, below), (left_down, left)):
        one += first | second
    for first, second in ((above, right_up), (right, right_down), (below, left_down), (left, left_up)):
        other += first | second
    neighbours = torch.minimum(one, other)
    lower = (below | left_down | ~left_up) & left
    kept = lower if half == 0 else (above | right_up | ~right_down) & right
    return (parts == 1) & (neighbours >= 2) & (neighbours <= 3) & ~kept
