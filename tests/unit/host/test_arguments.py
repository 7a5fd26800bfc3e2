"""What a function publishes becomes arguments; what a person gives is checked against it."""

from __future__ import annotations

import pytest

from tasks.errors import BadInputError
from tasks.host.arguments import read_parameters, scalars_for

PARAMETERS = read_parameters(
    [
        {"name": "raster", "dataType": "raster"},
        {"name": "rasters", "dataType": "rasters"},
        {"name": "model", "dataType": "string"},
        {"name": "device", "dataType": "numeric"},
        {"name": "padding", "dataType": "numeric", "value": 56, "displayName": "Padding"},
        {"name": "batch_size", "dataType": "GPLong", "value": "4", "domain": (1, 4, 16, 64)},
        {"name": "threshold", "dataType": "GPDouble", "value": 0.5, "domain": [0.0, 1.0]},
        {"name": "merge_policy", "dataType": "GPStringKeyword", "value": "mean", "domain": ["mean", "max"]},
        {"name": "tta", "dataType": "boolean", "value": False},
        {"name": "note", "dataType": "string"},
    ]
)


def test_rasters_model_and_device_are_not_the_persons() -> None:
    names = [parameter.name for parameter in PARAMETERS]
    assert names == ["padding", "batch_size", "threshold", "merge_policy", "tta", "note"]
    assert PARAMETERS[0].display_name == "Padding"
    assert PARAMETERS[1].display_name == "batch_size"


def test_defaults_are_complete_and_never_bools() -> None:
    scalars = scalars_for(PARAMETERS, {})
    assert scalars == {
        "padding": 56,
        "batch_size": "4",
        "threshold": 0.5,
        "merge_policy": "mean",
        "tta": "False",
        "note": "",
    }
    assert not any(isinstance(value, bool) for value in scalars.values())


@pytest.mark.parametrize(
    ("given", "reaches"),
    [
        ({"padding": "32"}, "32"),
        ({"batch_size": "16"}, "16"),
        ({"threshold": "1"}, "1"),
        ({"merge_policy": "MAX"}, "max"),
        ({"tta": "true"}, "True"),
        ({"tta": "0"}, "False"),
        ({"note": "any text"}, "any text"),
    ],
)
def test_given_values_replace_defaults(given: dict[str, str], reaches: str) -> None:
    (name,) = given
    assert scalars_for(PARAMETERS, given)[name] == reaches


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"treshold": "0.1"}, "Use padding, batch_size, threshold, merge_policy, tta, note"),
        ({"device": "0"}, "no argument 'device'"),
        ({"padding": "wide"}, "a number"),
        ({"padding": "nan"}, "a number"),
        ({"batch_size": "3"}, "one of 1, 4, 16, 64"),
        ({"batch_size": "4.5"}, "a whole number"),
        ({"threshold": "1.01"}, "from 0 to 1"),
        ({"merge_policy": "median"}, "one of mean, max"),
        ({"tta": "perhaps"}, "True or False"),
    ],
)
def test_what_the_function_does_not_allow_is_refused_with_what_it_does(
    given: dict[str, str], words: str
) -> None:
    with pytest.raises(BadInputError, match=words):
        scalars_for(PARAMETERS, given)


def test_required_argument_without_default_must_be_given() -> None:
    required = read_parameters([{"name": "text_prompt", "dataType": "string", "required": True}])
    with pytest.raises(BadInputError, match="needs the argument 'text_prompt'"):
        scalars_for(required, {})
    assert scalars_for(required, {"text_prompt": "roof"}) == {"text_prompt": "roof"}
