"""When a challenger becomes the champion: only when the interval of the difference says so."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict


class Decision(BaseModel):
    """What is done with the alias, and why.

    Attributes:
        promote: whether it moves to the challenger.
        reason: in one sentence.
        measure: what was looked at.
        difference, low, high: challenger minus champion and its interval; None where not defined.
    """

    model_config = ConfigDict(frozen=True)

    promote: bool
    reason: str
    measure: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def decide(
    measure: str, difference: float, low: float, high: float, *, least_gain: float, level: float
) -> Decision:
    """Move the alias only when the whole interval lies above ``least_gain``.

    Args:
        measure: name of what was measured, for the reason.
        difference: challenger minus champion; NaN where one of the two is not defined.
        low, high: ends of its interval; NaN where there are too few blocks.
        least_gain: 0 or more.
        level: of the interval.
    """
    shown = f"{100 * level:g} % interval"
    known = {
        name: value if math.isfinite(value) else None
        for name, value in (("difference", difference), ("low", low), ("high", high))
    }
    if not math.isfinite(difference):
        reason = f"{measure} is not defined for both versions, so nothing is decided"
        return Decision(promote=False, reason=reason, measure=measure, **known)
    if not math.isfinite(low):
        reason = (
            f"There is no interval of the difference ({difference:+.4f}): the evaluation set has fewer than "
            "two blocks of ground with objects or pixels; take more imagery or a smaller block_size"
        )
        return Decision(promote=False, reason=reason, measure=measure, **known)
    told = f"The challenger's {measure} differs by {difference:+.4f} ({shown} {low:+.4f} to {high:+.4f})"
    if low > least_gain:
        return Decision(
            promote=True, reason=f"{told}, all of it above {least_gain:g}", measure=measure, **known
        )
    return Decision(
        promote=False, reason=f"{told}, not all of it above {least_gain:g}", measure=measure, **known
    )


def first_champion(measure: str) -> Decision:
    """A model without a champion gets its challenger."""
    return Decision(
        promote=True, reason="There was no champion yet: the challenger becomes it", measure=measure
    )
