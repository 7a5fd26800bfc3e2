"""Objects below the threshold that are kept, so that another threshold needs no model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks.errors import BadInputError
from tasks.infer.describe import FunctionDescription

THRESHOLD = "threshold"
"""The argument of ArcGIS's detectors; from 0 to 1."""


def asked_threshold(description: FunctionDescription, floor: float) -> float:
    """The threshold that the person asked for, or the function's own, which the layer will keep to.

    Args:
        description: of the function with the person's arguments.
        floor: ``candidate_threshold``.

    Raises:
        BadInputError: the function takes no threshold, or one below the candidates'.
    """
    given = description.scalars.get(THRESHOLD)
    if given is None:
        raise BadInputError(
            "keep_candidates lowers the function's threshold, and this package's function takes none.",
            "Leave keep_candidates off; all that the function reports is in the layer anyway.",
        )
    asked = float(given)
    if asked < floor:
        raise BadInputError(
            f"The threshold {asked:g} lies below candidate_threshold {floor:g}.",
            "Give a candidate_threshold that is at most the threshold.",
        )
    return asked


def confidence_scale(confidence: NDArray[np.float64]) -> float:
    """What a certain object has: 100 in newer functions, 1 in older ones.

    Source: ``docs/formats/python-raster-function.md`` §7. Candidates lie at 0.02 or more, so that none of the
    first kind is below 2 and none of the second above 1.
    """
    return 100.0 if len(confidence) and np.nanmax(confidence) > 1 else 1.0


def above(confidence: NDArray[np.float64], threshold: float, scale: float) -> NDArray[np.bool_]:
    """Which objects reach a threshold from 0 to 1, on the scale of :func:`confidence_scale`."""
    # The function compares in its own precision, before it multiplies.
    reached: NDArray[np.bool_] = confidence >= threshold * scale - 1e-6 * scale
    return reached
