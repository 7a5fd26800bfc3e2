"""Mixup (Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018): chips learnt from in pairs."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the Beta distribution that shares are drawn from: most pairs are mostly one of the two.
_ALPHA = 0.4


def mix(images: Tensor) -> tuple[Tensor, Tensor, float]:
    """A batch of which each chip is mixed with another one (of a batch of one, with itself).

    What is drawn follows from torch's random state.

    Args:
        images: # (n, bands, rows, cols)

    Returns:
        The mixed images, the partner of each chip  # (n,), and the share of the chip itself, 0.5 to 1.
    """
    share = float(torch.distributions.Beta(_ALPHA, _ALPHA).sample())
    share = max(share, 1.0 - share)
    partner = torch.randperm(len(images)).to(images.device)
    return share * images + (1.0 - share) * images[partner], partner, share
