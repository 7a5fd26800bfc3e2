"""The class schema: order, colours, what a label may be called."""

from __future__ import annotations

import pytest

from tasks.errors import LabelError
from tasks.labels.schema import ClassSchema, palette_color


def test_classes_are_ordered_by_value_and_coloured_alike_every_time() -> None:
    schema = ClassSchema.from_values({7: "Road", 2: "Tree"}, {7: (1, 2, 3)})
    assert schema.values == (2, 7)
    assert schema.names == ("Tree", "Road")
    assert [item.color for item in schema] == [palette_color(0), (1, 2, 3)]
    assert schema == ClassSchema.from_values({2: "Tree", 7: "Road"}, {7: (1, 2, 3)})


def test_the_palette_gives_distinct_colours_for_many_classes() -> None:
    assert len({palette_color(index) for index in range(100)}) == 100


def test_records_round_trip() -> None:
    schema = ClassSchema.from_values({1: "Tree", 40: "Bush"})
    assert ClassSchema.from_records(schema.to_records()) == schema


def test_records_of_old_releases_and_without_colour_are_understood() -> None:
    schema = ClassSchema.from_records(
        [
            {"ClassValue": 0, "ClassName": "Background"},
            {"ClassValue": 3, "ClassName": "Palm"},
            {"Value": 1, "Name": "Tree", "Color": [-1, -1, -1]},
        ]
    )
    assert schema.names == ("Tree", "Palm")
    assert schema.classes[0].color == palette_color(0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), (" 2 ", 2), ("Tree", 1), ("2.0", 2), ("3", None), ("tree", None), ("", None)],
)
def test_a_label_names_its_class_by_value_or_by_name(text: str, value: int | None) -> None:
    assert ClassSchema.from_values({1: "Tree", 2: "Bush"}).value_of(text) == value


def test_the_value_goes_before_a_name_that_looks_like_a_number() -> None:
    assert ClassSchema.from_values({1: "2", 2: "1"}).value_of("1") == 1


def test_two_classes_with_one_name_are_refused() -> None:
    with pytest.raises(LabelError, match="'Tree' belongs to the values 1 and 2"):
        ClassSchema.from_values({1: "Tree", 2: "Tree"})


def test_a_value_below_one_is_refused() -> None:
    with pytest.raises(LabelError, match="from 1"):
        ClassSchema.from_values({0: "Tree"})
