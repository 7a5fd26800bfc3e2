"""The class schema file: what it says, and what it must not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import LabelError, NotFoundError
from tasks.labels.schema import ClassSchema, palette_color
from tasks.labels.schema_file import parse_schema, read_schema_file, schema_document

TREES = {
    "classes": [
        {
            "value": 1,
            "name": "Tree",
            "color": "#2a9d8f",
            "children": [
                {
                    "value": 11,
                    "name": "Oak",
                    "color": [42, 120, 60],
                    "children": [{"value": 111, "name": "Red oak"}],
                },
                {"value": 12, "name": "Pine"},
            ],
        },
        {"value": 2, "name": "Road"},
    ]
}


def parsed(document: Any) -> ClassSchema:
    return parse_schema(json.dumps(document).encode(), "classes.json")


def test_parents_and_children_are_classes(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(TREES))
    schema = read_schema_file(str(path))
    assert schema.values == (1, 2, 11, 12, 111)
    assert schema.names == ("Tree", "Road", "Oak", "Pine", "Red oak")
    assert [item.parent for item in schema] == [None, None, 1, 1, 11]
    assert schema.classes[0].color == (42, 157, 143)
    assert schema.classes[2].color == (42, 120, 60)


def test_classes_without_a_colour_get_the_palettes_and_no_one_elses() -> None:
    assert [item.color for item in parsed({"classes": [{"value": v, "name": str(v)} for v in (1, 2)]})] == [
        palette_color(0),
        palette_color(1),
    ]
    taken = list(palette_color(1))
    schema = parsed({"classes": [{"value": 1, "name": "a", "color": taken}, {"value": 2, "name": "b"}]})
    assert len({item.color for item in schema}) == 2


def test_a_file_with_a_byte_order_mark_is_read() -> None:
    assert len(parse_schema(b"\xef\xbb\xbf" + json.dumps(TREES).encode(), "x")) == 5


def test_an_emd_does_not_show_parents() -> None:
    assert set(parsed(TREES).to_records()[2]) == {"Value", "Name", "Color"}


nodes: st.SearchStrategy[list[Any]] = st.recursive(
    st.lists(st.just([]), min_size=1, max_size=3),
    lambda children: st.lists(children, min_size=1, max_size=3),
    max_leaves=8,
)


@given(nodes, st.randoms())
def test_a_schema_survives_its_own_document(tree: list[Any], random: Any) -> None:
    values = random.sample(range(1, 1000), 60)

    def document(children: list[Any]) -> list[dict[str, Any]]:
        made = []
        for child in children:
            value = values.pop()
            made.append({"value": value, "name": f"class {value}", "children": document(child)})
        return made

    schema = parsed({"classes": document(tree)})
    assert parsed(schema_document(schema)) == schema


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "the file"),
        ({}, "classes: field required"),
        ({"classes": []}, "classes"),
        ({"classes": [{"name": "Tree"}]}, r"classes\.0\.value"),
        ({"classes": [{"value": 1}]}, r"classes\.0\.name"),
        ({"classes": [{"value": 1, "name": ""}]}, r"classes\.0\.name"),
        ({"classes": [{"value": 1, "name": "  "}]}, "has no name"),
        ({"classes": [{"value": 0, "name": "Tree"}]}, r"classes\.0\.value.*greater"),
        ({"classes": [{"value": 2**31, "name": "Tree"}]}, r"classes\.0\.value"),
        ({"classes": [{"value": "1", "name": "Tree"}]}, r"classes\.0\.value"),
        ({"classes": [{"value": True, "name": "Tree"}]}, r"classes\.0\.value"),
        ({"classes": [{"value": 1.0, "name": "Tree"}]}, r"classes\.0\.value"),
        ({"classes": [{"value": 1, "name": "Tree", "colour": "#ffffff"}]}, r"classes\.0\.colour"),
        ({"classes": [{"value": 1, "name": "Tree", "color": "green"}]}, r"#rrggbb"),
        ({"classes": [{"value": 1, "name": "Tree", "color": [1, 2]}]}, r"#rrggbb"),
        ({"classes": [{"value": 1, "name": "Tree", "color": [1, 2, 256]}]}, r"255"),
        ({"classes": [{"value": 1, "name": "Tree", "color": [1, 2, True]}]}, r"#rrggbb"),
        ({"classes": [{"value": 1, "name": "Tree", "children": [{"value": 2}]}]}, r"children\.0\.name"),
        ({"classes": [{"value": 1, "name": "A"}, {"value": 1, "name": "B"}]}, "value 1 twice"),
        (
            {"classes": [{"value": 1, "name": "A"}, {"value": 2, "name": "A"}]},
            "'A' belongs to the values 1 and 2",
        ),
        ({"classes": [{"value": 1, "name": "A", "children": [{"value": 1, "name": "B"}]}]}, "value 1 twice"),
    ],
)
def test_what_is_wrong_is_named(document: Any, says: str) -> None:
    with pytest.raises(LabelError, match=says):
        parsed(document)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"classes": [{"value": 1, "value": 2, "name": "Tree"}]}'],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(LabelError, match="no JSON that can be read"):
        parse_schema(data, "classes.json")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        read_schema_file("/nowhere/classes.json")


def test_a_file_of_another_kind_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    path.write_bytes(b" " * (5 * 2**20))
    with pytest.raises(LabelError, match="5242880 bytes"):
        read_schema_file(str(path))
