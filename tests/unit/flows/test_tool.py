"""A tool's flow is made from its parameter model and says clearly what does not fit."""

from __future__ import annotations

from typing import Literal

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import Field

from flows._tool import tool
from tasks.errors import BadInputError
from tasks.parameters import ModelArgument, ToolParameters, inherited


class CutParameters(ToolParameters):
    input_raster: list[str] = Field(description="rasters to cut")
    tile_size: int = Field(default=256, ge=32, le=4096, description="edge of a chip in pixels")
    chip_format: Literal["TIFF", "PNG"] = Field(default="TIFF", description="format of the chips")
    output_location: str = Field(description="where chips go")
    model_arguments: list[ModelArgument] = Field(default=[], description="arguments")


@tool(CutParameters, run_name="cut {output_location}")
def cut(parameters: CutParameters) -> str:
    """Cut a raster."""
    return f"{parameters.tile_size} {parameters.chip_format}"


def test_schema_keeps_bounds_enumerations_defaults_and_descriptions() -> None:
    schema = parameter_schema(cut.fn).model_dump()
    tile_size = schema["properties"]["tile_size"]
    assert (tile_size["minimum"], tile_size["maximum"], tile_size["default"]) == (32, 4096, 256)
    assert tile_size["description"] == "edge of a chip in pixels"
    assert schema["properties"]["chip_format"]["enum"] == ["TIFF", "PNG"]
    assert schema["required"] == ["input_raster", "output_location"]


def test_every_parameter_is_described_in_the_docstring_for_the_form() -> None:
    text = cut.fn.__doc__ or ""
    assert text.startswith("Cut a raster.")
    for name, field in CutParameters.model_fields.items():
        assert f"{name}: {field.description}" in text


def test_unknown_parameter_is_named_with_those_that_exist() -> None:
    with pytest.raises(BadInputError) as caught:
        cut.validate_parameters({"input_raster": ["a.tif"], "output_location": "x", "tile_sise": 3})
    assert "tile_sise" in str(caught.value)
    assert "tile_size" in caught.value.remedy


def test_every_wrong_field_is_in_one_message() -> None:
    with pytest.raises(BadInputError) as caught:
        cut.validate_parameters({"input_raster": "a.tif", "tile_size": 1})
    for name in ("input_raster", "tile_size", "output_location"):
        assert name in caught.value.problem


def test_values_reach_the_function_validated() -> None:
    values = cut.validate_parameters(
        {"input_raster": ["a"], "output_location": "x", "model_arguments": [{"name": "a", "value": "1"}]}
    )
    assert values["model_arguments"] == [ModelArgument(name="a", value="1")]
    assert cut.fn(**values) == "256 TIFF"


def test_an_inherited_field_keeps_default_bounds_and_description() -> None:
    class ChainParameters(ToolParameters):
        chip_size: int = inherited(CutParameters, "tile_size")
        chip_format: Literal["TIFF", "PNG"] = inherited(CutParameters, "chip_format")

    schema = ChainParameters.model_json_schema()["properties"]["chip_size"]
    assert (schema["minimum"], schema["maximum"], schema["default"]) == (32, 4096, 256)
    assert schema["description"] == "edge of a chip in pixels"
    assert ChainParameters().chip_format == "TIFF"
    with pytest.raises(ValueError, match="greater than or equal to 32"):
        ChainParameters(chip_size=1)
