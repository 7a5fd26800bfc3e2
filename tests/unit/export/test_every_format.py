"""Every metadata format goes through the same plan, cut and finish, and comes back from the reader."""

from __future__ import annotations

from typing import Any

import geopandas
import numpy as np
import pytest

from tasks.errors import BadInputError
from tasks.training_data import FORMATS, read_chip_image, read_class_mask, read_instances
from tests.unit.export.conftest import Export, MakeScene, Scene


def things(scene: Scene) -> str:
    """The labels of class 3 as a class 9 of their own, in a file of their own."""
    path = scene.labels.replace(".gpkg", "_things.gpkg")
    frame: geopandas.GeoDataFrame = scene.frame[scene.frame["classvalue"] == 3].copy()
    frame["classvalue"], frame["classname"] = 9, "Big rock"
    frame.to_file(path, engine="pyogrio")
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_pixels_and_numbers_of_every_format(name: str, make_scene: MakeScene, export: Export) -> None:
    scene = make_scene()
    more: dict[str, dict[str, Any]] = {
        "Panoptic_Segmentation": {"input_instance_data": scene.labels},
        "CycleGAN": {"additional_input_raster": [make_scene(seed=2, name="second").raster]},
        "Export_Tiles": {"additional_input_raster": [make_scene(seed=2, name="second").raster]},
    }
    made = export(scene, metadata_format=name, start_index=7, **more.get(name, {}))
    data = made.data
    assert data.metadata_format == name
    assert len(data.chips) + (len(data.other.chips) if data.other else 0) == made.plan.chips
    assert min(chip.stem for chip in data.chips) == "000000007"
    chip = data.chips[0]
    assert chip.footprint is not None
    left, top = chip.footprint[0], chip.footprint[3]
    col, row = round((left - 500_000) / 0.5), round((5_000_000 - top) / 0.5)
    expected = np.zeros((3, 64, 64), np.uint8)
    seen = scene.pixels[:, max(row, 0) : row + 64, max(col, 0) : col + 64]
    expected[:, max(-row, 0) :, max(-col, 0) :][:, : seen.shape[1], : seen.shape[2]] = seen
    np.testing.assert_array_equal(read_chip_image(chip), expected)


def test_objects_with_classes_of_their_own_are_in_the_semantic_map(
    make_scene: MakeScene, export: Export
) -> None:
    scene = make_scene()
    made = export(
        scene, metadata_format="Panoptic_Segmentation", input_instance_data=things(scene), stride_size=64
    )
    assert made.data.classes.names == ("Tree", "Bush", "Rock", "Big_rock")
    found = 0
    for chip in made.data.chips:
        for value, numbers in read_instances(chip).items():
            assert value == 9
            np.testing.assert_array_equal(read_class_mask(chip) == 9, numbers > 0)
            found += int(numbers.max())
    assert found > 0


def test_a_value_that_means_two_classes_is_refused(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene()
    frame = scene.frame.copy()
    frame["classname"] = "Car"
    frame["classvalue"] = 1
    path = scene.labels.replace(".gpkg", "_cars.gpkg")
    frame.to_file(path, engine="pyogrio")
    with pytest.raises(BadInputError, match="'Tree' of input_class_data and 'Car'"):
        export(scene, metadata_format="Panoptic_Segmentation", input_instance_data=path)
