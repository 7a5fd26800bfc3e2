"""Parameters of what is made of a package's answers: stitching, probabilities, polygons, formats."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.parameters import ToolParameters

Stitching = Literal["TRIM", "BLEND"]


class ScoreParameters(ToolParameters):
    """How tiles are put together, and whether their probabilities are kept."""

    stitching: Stitching = Field(
        default="TRIM",
        description="TRIM takes each pixel from the one tile whose inner part holds it; BLEND mixes the "
        "probabilities of neighbouring tiles within half the padding, which hides the seams of networks that "
        "see more than the padding. BLEND needs a package that offers scores (those trained here do)",
    )
    keep_probabilities: bool = Field(
        default=False,
        description="Publish the probabilities of the top classes (uint8, 255 is certain) beside the "
        "classified raster, so that refine_results can set other thresholds without running the model; "
        "needs a package that offers scores",
    )
    top_classes: int = Field(
        default=3,
        ge=1,
        le=16,
        description="Number of classes per pixel whose probabilities keep_probabilities keeps",
    )
