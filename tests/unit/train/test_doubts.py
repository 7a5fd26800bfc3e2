"""What a training can be doubted for is told, and folders that do not go together are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import TrainingDataError
from tasks.labels import ClassSchema
from tasks.train.data_formats import check_agreement
from tasks.train.dividing import common_footprints, divide
from tasks.train.doubts import doubts_of
from tasks.train.splits import Split
from tasks.training_data import TrainingData, open_training_data
from tests.unit.train.test_zoo import parameters

MakeData = Callable[..., TrainingData]


def imagenet(folder: Path, counts: dict[str, int], seed: int = 0) -> TrainingData:
    """Pictures in folders named after their classes, from elsewhere: no places, no side files."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / "images" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{name}{number}.png")
    return open_training_data(folder, "Imagenet")


def test_pictures_without_places_are_drawn_by_lot_and_copies_leave(tmp_path: Path) -> None:
    data = imagenet(tmp_path, {"oak": 20, "pine": 10})
    given = parameters("FEATURE_CLASSIFIER", {}, validation_percent=20)
    split, leakage = divide(given, [data])
    assert (split.by, len(split.validation), leakage.chips) == ("lot", 6, ())
    validated = [data.chips[index].values for index in split.validation]
    assert {values: validated.count(values) for values in set(validated)} == {
        data.chips[0].values: 4,
        data.chips[-1].values: 2,
    }
    # A planted copy of a picture that validates, mirrored.
    source, target = (data.chips[indices[0]].image for indices in (split.validation, split.train))
    Image.fromarray(np.asarray(Image.open(source))[:, ::-1]).save(target)
    again, caught = divide(given, [data])
    assert caught.copies == (split.train[0],)
    assert again.validation == split.validation
    assert split.train[0] in again.dropped
    [doubt] = doubts_of(given, [data], data.chips, split)
    assert "drawn by lot" in doubt


def test_the_folders_own_validation_side_is_judged(tmp_path: Path) -> None:
    train = imagenet(tmp_path / "train", {"oak": 6, "pine": 6})
    val = imagenet(tmp_path / "val", {"oak": 2, "pine": 2}, seed=1)
    given = parameters("FEATURE_CLASSIFIER", {})
    split, _ = divide(given, [train], [val])
    assert (split.by, len(split.train), len(split.validation)) == ("folder", 12, 4)
    val.chips[1].image.write_bytes(train.chips[7].image.read_bytes())
    with pytest.raises(TrainingDataError, match="1 of 12 training chips leak"):
        divide(given, [train], [val])


def test_a_classifier_of_one_class_is_doubted(tmp_path: Path) -> None:
    data = imagenet(tmp_path, {"oak": 4})
    given = parameters("FEATURE_CLASSIFIER", {})
    areas = Split((0, 1, 2), (3,), (), buffer=1.0)
    [doubt] = doubts_of(given, [data], data.chips, areas)
    assert "one class (oak)" in doubt
    # Of several labels, one class is a question that has two answers: there, or not.
    several = [replace(chip, values=() if index else chip.values) for index, chip in enumerate(data.chips)]
    assert not doubts_of(given, [data], several, areas)
    assert not doubts_of(parameters("FCOS", {}), [data], data.chips, areas)
    assert "no buffer" in doubts_of(parameters("FCOS", {}), [data], data.chips, replace(areas, buffer=0.0))[0]


def test_footprints_of_several_systems_are_compared_in_one(make_data: MakeData) -> None:
    west = make_data("west", count=2)
    zone12 = west.chips[0].footprint
    assert west.wkid == 32612
    assert zone12 is not None
    # The same ground, told in Web Mercator.
    place = (-12_356_465.5, 5_646_950.0, -12_356_290.0, 5_647_125.0)
    east = replace(west, wkid=3857, chips=[replace(west.chips[0], footprint=place)])
    found = common_footprints([west, east])
    assert found[:2] == [chip.footprint for chip in west.chips]
    moved = found[2]
    assert moved is not None
    # 128 m of the ground are about 176 m of Web Mercator at 45 degrees north.
    np.testing.assert_allclose(moved[2] - moved[0], 124, atol=8)
    assert common_footprints([west, replace(east, wkid=None)])[2] is None
    assert common_footprints([west, replace(east, wkid=987_654)])[2] is None


def test_folders_must_go_together(make_data: MakeData) -> None:
    first = make_data("a", count=2)
    # Colours are a matter of taste.
    other = ClassSchema.from_records(
        [{**record, "Color": [9, 9, 9]} for record in first.classes.to_records()]
    )
    check_agreement([first, replace(make_data("b", count=2), classes=other)])
    tiles = make_data("c", count=2, metadata_format="Classified_Tiles")
    with pytest.raises(
        TrainingDataError, match=r"another metadata format than .*a: Classified_Tiles in place"
    ):
        check_agreement([first, tiles])
    with pytest.raises(TrainingDataError, match="another list of bands"):
        check_agreement([first, replace(first, band_names=("Blue", "Green", "Red"))])
    with pytest.raises(TrainingDataError, match="another reference system"):
        check_agreement([first, replace(first, image_space="PIXEL_SPACE")])
    deep = make_data("d", count=1)
    Image.fromarray(np.zeros((128, 128), np.uint16)).save(deep.chips[0].image)
    with pytest.raises(TrainingDataError, match=r"another pixel type .*: uint16 in place of uint8"):
        check_agreement([first, deep])


def test_the_reference_system_is_read(make_data: MakeData) -> None:
    data = make_data(count=1)
    assert not data.upright
    path = data.folder / "esri_model_definition.emd"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ImageSpaceUsed": "PIXEL_SPACE"}))
    assert open_training_data(data.folder).upright
