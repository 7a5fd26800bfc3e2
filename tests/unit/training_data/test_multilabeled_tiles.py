"""MultiLabeled_Tiles: a chip has the set of the classes inside."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import BadInputError, TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import multilabeled_tiles
from tasks.training_data.pascal_voc import decode_annotation, encode_annotation
from tasks.training_data.sample import Folder
from tests.unit.training_data.samples import context, read, sample, write

BOX = (1.0, 1.0, 9.0, 9.0)
# XML has no place for control characters, and a name has none.
NAMES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters=","), min_size=1, max_size=8)


@given(names=st.lists(NAMES, min_size=2, max_size=5, unique=True), data=st.data())
@settings(max_examples=40, deadline=None)
def test_classes_come_back(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    classes = ClassSchema.from_values({5 * i + 1: f"~{name}" for i, name in enumerate(names)})
    present = data.draw(st.lists(st.sampled_from(classes.values), max_size=6))
    folder = tmp_path_factory.mktemp("tiles")
    write("MultiLabeled_Tiles", [sample(0, [(value, *BOX) for value in present])], folder, context(classes))
    (chip,) = read("MultiLabeled_Tiles", folder, classes)
    assert chip.values == tuple(sorted(set(present)))


def test_a_chip_without_labels_still_has_an_object_for_arcgis(tmp_path: Path) -> None:
    write("MultiLabeled_Tiles", [sample(0)], tmp_path)
    assert decode_annotation(tmp_path / "labels/000000000.xml") == [("NoData", 0.0, 0.0, 128.0, 128.0)]
    (chip,) = read("MultiLabeled_Tiles", tmp_path)
    assert chip.values == ()


@pytest.mark.parametrize("name", ["Oak, old", "NoData", " Oak", ""])
def test_names_that_the_list_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(BadInputError, match="another name"):
        multilabeled_tiles.FORMAT.check(context(ClassSchema.from_values({1: name})))


@pytest.mark.parametrize("text", ["Tree,Building", "2, 1", "Tree,1,Tree", "Building,Tree,"])
def test_lists_that_others_write(tmp_path: Path, text: str) -> None:
    write("MultiLabeled_Tiles", [sample(0)], tmp_path)
    (tmp_path / "labels/000000000.xml").write_bytes(
        encode_annotation("0.png", (3, 128, 128), [(text, 0.0, 0.0, 128.0, 128.0)], source="another")
    )
    (chip,) = read("MultiLabeled_Tiles", tmp_path)
    assert chip.values == (1, 2)


def test_an_unknown_class_is_refused(tmp_path: Path) -> None:
    write("MultiLabeled_Tiles", [sample(0, [(1, *BOX), (2, *BOX)])], tmp_path)
    with pytest.raises(TrainingDataError, match="class 'Tree'"):
        read("MultiLabeled_Tiles", tmp_path, ClassSchema.from_values({1: "Building"}))


def test_classes_without_side_files(tmp_path: Path) -> None:
    write("MultiLabeled_Tiles", [sample(0, [(1, *BOX), (2, *BOX)]), sample(1)], tmp_path)
    found = multilabeled_tiles.FORMAT.find_classes(Folder(tmp_path, ClassSchema(()), {}, {}, ()))
    assert found is not None
    assert found.names == ("Building", "Tree")
