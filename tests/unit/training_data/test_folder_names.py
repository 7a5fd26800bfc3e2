"""Class names as folder names: legal everywhere, distinct everywhere, and the same when done again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data.layout import folder_classes, folder_name

RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


@settings(max_examples=120, deadline=None)
@given(st.text(max_size=20))
def test_any_name_becomes_a_folder_name_on_every_system(name: str) -> None:
    made = folder_name(name)
    assert made
    assert made not in (".", "..")
    assert not set(made) & set('<>:"/\\|?*')
    assert made.split() == [made], "map.txt is split at blanks"
    assert not any(ord(letter) < 32 for letter in made)
    assert not made.endswith(".")
    assert made.split(".")[0].lower() not in RESERVED
    assert folder_name(made) == made


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("Building", "Building"),
        ("Palm tree", "Palm_tree"),
        (" Palm  tree ", "Palm_tree"),
        ("Straße/Weg", "Straße_Weg"),
        ("Stra\u0308uch", "Sträuch"),
        ("森林", "森林"),
        ("CON", "_CON"),
        ("nul.tif", "_nul.tif"),
        ("etc.", "etc"),
        ("..", "_"),
        ("", "_"),
    ],
)
def test_names(name: str, made: str) -> None:
    assert folder_name(name) == made


def test_classes_that_would_share_a_folder_get_their_values() -> None:
    classes = ClassSchema.from_values({1: "Tree", 2: "tree", 3: "a b", 4: "a_b", 5: "Road"}, {1: (1, 2, 3)})
    made = folder_classes(classes)
    assert made.names == ("Tree_1", "tree_2", "a_b_3", "a_b_4", "Road")
    assert made.classes[0].color == (1, 2, 3)
    assert folder_classes(made) == made


def test_classes_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(TrainingDataError, match="differ in letters or digits"):
        folder_classes(ClassSchema.from_values({1: "Tree", 2: "tree", 3: "TREE_1"}))
