"""Classes in, an empty layer to draw labels in out."""

from __future__ import annotations

from flows._tool import tool
from tasks.labels.parameters import LabelLayerParameters
from tasks.labels.task import make_label_layer


@tool(LabelLayerParameters, run_name="label layer {output_name}")
def create_label_layer(parameters: LabelLayerParameters) -> dict[str, str]:
    """Make an empty GeoPackage to draw labels in: styled, with the classes as a list."""
    return make_label_layer(parameters)
