"""What a function's configuration says of its scores, and what the engine makes of it for one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.errors import BadInputError
from tasks.infer.parameters_outputs import ScoreParameters
from tasks.infer.scores import ScoreLayout, Scoring, blend_margin
from tasks.infer.shards import TileGeometry

MOST_SCORES = 256
"""More would not fit the type of a rank."""


def score_layout(
    configuration: Mapping[str, Any], class_values: Sequence[int], geometry: TileGeometry
) -> ScoreLayout:
    """The layout of the scores of a function that offers ``predict_scores``.

    Without ``score_values`` the scores are those of the package's classes in their order, after one of the
    background (0) where there is one score more than classes. Without ``tile_size`` the function takes whole
    super-tiles.

    Raises:
        BadInputError: which class a score belongs to cannot be told.
    """
    listed = configuration.get("score_values")
    count = int(configuration.get("number_of_scores") or 0)
    if listed is not None:
        values = [int(value) for value in listed]
    elif count == len(class_values) + 1 and 0 not in class_values:
        values = [0, *class_values]
    else:
        values = list(class_values)
    if not values or len(values) > MOST_SCORES or (count and len(values) != count):
        raise BadInputError(
            f"The function gives {count} scores and names {len(values)} values for them.",
            "Let its getConfiguration state score_values, one class value per score.",
        )
    shown = str(configuration.get("predict_background", True)).strip().lower() not in ("false", "0", "no")
    rows, cols = geometry.rows, geometry.cols
    tile = int(configuration.get("tile_size") or 0) - 2 * geometry.padding
    if tile > 0 and rows % tile == 0 and cols % tile == 0:
        rows = cols = tile
    return ScoreLayout(
        values=values,
        hidden=[] if shown else [0],
        chip_rows=rows + 2 * geometry.padding,
        chip_cols=cols + 2 * geometry.padding,
        batch=(geometry.rows // rows) * (geometry.cols // cols),
    )


def scoring_for(
    parameters: ScoreParameters,
    layout: ScoreLayout | None,
    refusal: str,
    geometry: TileGeometry,
    dtype: str,
) -> Scoring | None:
    """How the engine makes classes of scores; None where it takes the classes that the function gives.

    Args:
        parameters: of the tool.
        layout: of the function's scores, or None where they cannot be had, for the reason in ``refusal``.
        refusal: why not.
        geometry: of the function.
        dtype: numpy name of the output's type.

    Raises:
        BadInputError: scores are needed and cannot be had, or a padding that leaves nothing to blend.
    """
    blend = parameters.stitching == "BLEND"
    if not blend and not parameters.keep_probabilities:
        return None
    if layout is None:
        wish = "stitching BLEND" if blend else "keep_probabilities"
        raise BadInputError(
            f"{wish} needs the scores of the classes, and {refusal}.",
            "Take stitching TRIM without keep_probabilities, or a package that offers scores.",
        )
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        if min(layout.values) < limits.min or max(layout.values) > limits.max:
            raise BadInputError(
                f"The function gives the values {layout.values}, and the package's classes fit {dtype}.",
                "List every value that the function gives among the package's Classes.",
            )
    margin = blend_margin(geometry, layout) if blend else 0
    if blend and margin < 1:
        raise BadInputError(
            f"stitching is BLEND, and a padding of {geometry.padding} pixels leaves nothing to blend.",
            "Give a larger padding among the model arguments, or take stitching TRIM.",
        )
    scoring = Scoring(layout=layout, margin=margin, kept=0)
    if not parameters.keep_probabilities:
        return scoring
    return scoring.model_copy(update={"kept": min(parameters.top_classes, len(scoring.chosen))})
