"""Parameters of ``create_label_layer``."""

from __future__ import annotations

from pydantic import Field, model_validator

from tasks.errors import BadInputError
from tasks.parameters import ToolParameters


class LabelLayerParameters(ToolParameters):
    """Make an empty layer to draw labels in, with the classes as a list and in their colours."""

    class_schema: str = Field(
        min_length=1,
        description="URI of a class schema (JSON): the values, names and colours of the classes",
    )
    output_name: str = Field(
        min_length=1, description="Name of the layer's folder in the store, or the URI of a folder"
    )
    raster: str | None = Field(
        default=None,
        description="URI of the raster that will be labelled: the layer takes its coordinate system",
    )
    out_sr: str | None = Field(
        default=None,
        description="Coordinate system of the layer, for example EPSG:32612, where no raster is named",
    )

    @model_validator(mode="after")
    def _one_reference(self) -> LabelLayerParameters:
        if (self.raster is None) == (self.out_sr is None):
            raise BadInputError(
                "The layer needs one coordinate system.", "Name either the raster or out_sr, not both."
            )
        return self
