"""Data that cannot be learned from is refused before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import DeviceError, TrainingDataError
from tasks.labels import ClassSchema
from tasks.tracking import Tracker
from tasks.train import datasets
from tasks.train.augmentation import Recipe
from tasks.train.data_formats import check_format
from tasks.train.normalisation import normalisation_of
from tasks.train.parameters import TrainParameters
from tasks.train.train import check_data, fit
from tasks.training_data import FORMATS, TrainingData, open_training_data
from tasks.training_data.sample import Sample
from tests.unit.training_data.exports import export

MakeData = Callable[..., TrainingData]


def parameters(**values: object) -> TrainParameters:
    given = {"in_folder": ["x"], "output_name": "m", "model_type": "FCOS", **values}
    return TrainParameters.model_validate(given)


def test_the_format_must_fit_the_model(make_data: MakeData) -> None:
    with pytest.raises(TrainingDataError, match="metadata_format = Classified_Tiles"):
        check_data(parameters(model_type="UNET"), [make_data()])


@pytest.mark.parametrize(
    ("model_type", "fitting"),
    [
        ("UNET", {"Classified_Tiles", "RCNN_Masks", "Panoptic_Segmentation"}),
        (
            "FCOS",
            {"PASCAL_VOC_rectangles", "KITTI_rectangles", "RCNN_Masks", "COCO_rectangles", "YOLO_rectangles"},
        ),
    ],
)
def test_a_model_learns_from_every_format_that_holds_what_it_needs(
    model_type: str, fitting: set[str]
) -> None:
    chosen = parameters(model_type=model_type)
    for name in FORMATS:
        if name in fitting:
            check_format(chosen, name, "x")
            continue
        with pytest.raises(TrainingDataError, match=f"but x holds {name}") as refused:
            check_format(chosen, name, "x")
        assert all(other in refused.value.remedy for other in fitting)


@pytest.mark.parametrize("model_type", ["UNET", "FCOS"])
def test_masks_of_objects_teach_classes_and_boxes(tmp_path: Path, model_type: str) -> None:
    numbers = np.zeros((64, 64), np.uint8)
    numbers[4:20, 8:16], numbers[30:40, 30:50] = 1, 2
    image = np.zeros((3, 64, 64), np.uint8)
    samples = [
        Sample(
            number,
            image,
            np.ones((64, 64), bool),
            (1.0, 0.0, 64.0 * number, 0.0, -1.0, 0.0),
            instances={3: numbers},
        )
        for number in range(4)
    ]
    export(tmp_path, "RCNN_Masks", samples, ClassSchema.from_values({3: "Round", 7: "Square"}))
    data = open_training_data(tmp_path)
    check_data(parameters(model_type=model_type), [data])
    shared: dict[str, Any] = {
        "normalisation": normalisation_of([data], image.dtype),
        "size": None,
        "recipe": Recipe(dihedral=False, brightness=0, contrast=0, tint=0, scale=0),
        "multiple": 32,
    }
    if model_type == "UNET":
        _, labels = datasets.PixelChips(data.chips, **shared)[0, 0]
        np.testing.assert_array_equal(labels, numbers != 0)
    else:
        _, target = datasets.ObjectChips(data.chips, **shared)[0, 0]
        assert target["boxes"].tolist() == [[8, 4, 16, 20], [30, 30, 50, 40]]
        assert target["labels"].tolist() == [1, 1]


def test_pairs_of_pictures_are_refused(tmp_path: Path) -> None:
    picture, valid = np.zeros((3, 64, 64), np.uint8), np.ones((64, 64), bool)
    sample = Sample(
        0,
        picture,
        valid,
        (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
        mask=np.ones((64, 64), np.uint8),
        image2=picture,
        valid2=valid,
    )
    export(tmp_path, "Classified_Tiles", [sample], ClassSchema.from_values({1: "Changed"}))
    with pytest.raises(TrainingDataError, match="pairs of pictures"):
        check_data(parameters(model_type="UNET"), [open_training_data(tmp_path)])


def test_more_classes_than_a_label_holds_are_refused(make_data: MakeData) -> None:
    data = make_data(metadata_format="Classified_Tiles", count=2)
    values = {value: f"Class {value}" for value in range(1, 256)}
    most = replace(data, classes=ClassSchema.from_values(dict(list(values.items())[:254])))
    check_data(parameters(model_type="UNET"), [most])
    more = replace(data, classes=ClassSchema.from_values(values))
    with pytest.raises(TrainingDataError, match="has 255 classes, but models of pixels learn 254 at most"):
        check_data(parameters(model_type="UNET"), [more])
    boxes = replace(make_data("boxes"), classes=ClassSchema.from_values(values))
    check_data(parameters(), [boxes])


def test_folders_must_agree(make_data: MakeData) -> None:
    check_data(parameters(), [make_data("a"), make_data("b")])
    with pytest.raises(TrainingDataError, match="tile size"):
        check_data(parameters(), [make_data("c"), make_data("d", size=160)])


def test_chips_without_a_place_are_refused(make_data: MakeData, tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="world files"):
        fit(
            parameters(),
            [make_data(placed=False)],
            tmp_path,
            tracker=Tracker.disabled(),
            progress=lambda _fraction, _what: None,
        )


def test_a_gpu_that_is_not_there_is_no_silent_cpu(
    make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DeviceError, match="AUTO or CPU"):
        fit(
            parameters(processor_type="GPU"),
            [make_data()],
            tmp_path,
            tracker=Tracker.disabled(),
            progress=lambda _fraction, _what: None,
        )
