"""Data that cannot be learned from is refused before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.errors import DeviceError, TrainingDataError
from tasks.tracking import Tracker
from tasks.train.parameters import TrainParameters
from tasks.train.train import check_data, fit
from tasks.training_data import TrainingData

MakeData = Callable[..., TrainingData]


def parameters(**values: object) -> TrainParameters:
    given = {"in_folder": ["x"], "output_name": "m", "model_type": "FCOS", **values}
    return TrainParameters.model_validate(given)


def test_the_format_must_fit_the_model(make_data: MakeData) -> None:
    with pytest.raises(TrainingDataError, match="metadata_format = Classified_Tiles"):
        check_data(parameters(model_type="UNET"), [make_data()])


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
