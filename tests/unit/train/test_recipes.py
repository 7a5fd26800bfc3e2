"""What a person writes about augmentation is read as it is meant, or refused by name."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from tasks.errors import BadInputError
from tasks.train.parameters import TrainParameters
from tasks.train.recipes import NONE, Step, pairs_of_file, pairs_of_files, recipe_of, steps_of

ESRIS = [
    ["rotate", "30.0;0.5"],
    ["brightness", "(0.4,0.6);1.0"],
    ["contrast", "(0.75,1.5);1.0"],
    ["zoom", "(1.0,1.2);1.0"],
    ["crop", "224;1.0;(0,1);(0,1)"],
]
STEPS = (
    Step("rotate", (-30.0, 30.0), 0.5),
    Step("brightness", (0.4, 0.6)),
    Step("contrast", (0.75, 1.5)),
    Step("zoom", (1.0, 1.2)),
    Step("crop", (224.0, 224.0)),
)


def parameters(**values: object) -> TrainParameters:
    return TrainParameters.model_validate(
        {"in_folder": ["x"], "output_name": "m", "model_type": "FCOS", **values}
    )


def test_esris_form_is_understood() -> None:
    assert steps_of(ESRIS) == STEPS
    chosen = parameters(augmentation="CUSTOM", augmentation_parameters=ESRIS)
    recipe = recipe_of(chosen.augmentation, chosen.augmentation_parameters)
    assert recipe.steps == STEPS
    assert (recipe.dihedral, recipe.scale, recipe.tint) == (False, 0.0, 0.0)
    assert recipe_of("NONE", []) == NONE
    assert recipe_of("DEFAULT", [], upright=True).upright
    assert steps_of([["Crop", "64; 0.5; 0.5; (0.2,0.4)"], ["dihedral", "0.25"], ["rotate", "(-5, 10)"]]) == (
        Step("crop", (64.0, 64.0), 0.5, (0.5, 0.5), (0.2, 0.4)),
        Step("dihedral", probability=0.25),
        Step("rotate", (-5.0, 10.0)),
    )


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (["shear", "3;1"], "no augmentation 'shear'"),
        (["rotate", "lots;1"], "'lots', not a number"),
        (["rotate", "400;1"], "from -180 to 180"),
        (["rotate", "10;2"], "probability of rotate"),
        (["brightness", "(0.6,0.4);1"], "brightness takes values"),
        (["zoom", "0.5;1"], "from 1 to 10"),
        (["zoom", "1.5;1;0"], "takes 2 values"),
        (["crop", "(64,96);1"], "one whole number"),
        (["crop", "64;1;(0,2)"], "places from 0 to 1"),
        (["crop"], "a name and a text"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(pair: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parameters(augmentation="CUSTOM", augmentation_parameters=[pair])


def test_steps_and_choice_go_together() -> None:
    with pytest.raises(ValidationError, match="name at least one"):
        parameters(augmentation="CUSTOM")
    with pytest.raises(ValidationError, match="go with augmentation CUSTOM"):
        parameters(augmentation_parameters=ESRIS)
    parameters(augmentation="FILE", augmentation_parameters=ESRIS)  # as the plan fills them in


TRAINING = {
    "rotate": {"degrees": 30, "p": 0.5},
    "brightness": {"change": "0.4, 0.6"},
    "contrast": {"scale": [0.75, 1.5], "p": 1},
    "rand_zoom": {"scale": "(1, 1.2)"},
    "crop": {"size": 224, "p": 1, "row_pct": "0, 1", "col_pct": "0, 1"},
}


def test_a_file_says_the_same_in_both_its_forms() -> None:
    named = pairs_of_file(json.dumps({"Training": TRAINING, "Validation": {}}), "x")
    assert steps_of(named) == steps_of(pairs_of_file(json.dumps(ESRIS), "x")) == STEPS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("{}", 'no object "Training"'),
        ("[]", "neither an object"),
        ('{"Training": {"rotate": 3}}', "no object of values"),
        ('{"Training": {"rotate": {"angle": 3}}}', "rotate has no value angle; it has degrees, p"),
        ('{"Training": {"rotate": {"p": 1}}}', "rotate lacks degrees"),
        ('{"Training": {"jitter": {"p": 1}}}', "jitter"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        pairs_of_file(text, "folder/transforms.json")


def test_one_file_for_several_folders() -> None:
    files = {"b": json.dumps({"Training": TRAINING}).encode(), "c": b'[["rotate", "5"]]'}
    assert steps_of(pairs_of_files(["a", "b"], files.get)) == STEPS
    with pytest.raises(BadInputError, match=r"no transforms\.json in a"):
        pairs_of_files(["a"], files.get)
    with pytest.raises(BadInputError, match="of b and c differ"):
        pairs_of_files(["a", "b", "c"], files.get)
