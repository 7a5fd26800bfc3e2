"""Model arguments: presets, bounds, one clear message."""

from __future__ import annotations

import pytest

from tasks.errors import BadInputError, TrainingDataError
from tasks.parameters import ModelArgument
from tasks.train.models.options import DetectorOptions, PixelOptions, check_sizes, options_of, read_options
from tasks.train.parameters import TrainParameters


def parameters(**values: object) -> TrainParameters:
    given = {"in_folder": ["x"], "output_name": "m", "model_type": "FCOS", **values}
    return TrainParameters.model_validate(given)


def test_light_is_smaller_and_what_is_given_wins() -> None:
    light = read_options(DetectorOptions, {"preset": "LIGHT", "width": "96"})
    standard = read_options(DetectorOptions, {})
    assert (light.downscale, light.levels, light.head_convolutions) == (2, 1, 2)
    assert light.width == 96
    assert standard.downscale == 1
    assert standard.levels > light.levels


def test_texts_become_values() -> None:
    options = read_options(
        PixelOptions, {"class_balancing": "True", "downscale": " 4 ", "ignore_classes": "0, 3;7"}
    )
    assert options.class_balancing
    assert options.downscale == 4
    assert options.ignored == (0, 3, 7)


@pytest.mark.parametrize(
    ("kind", "arguments", "named"),
    [
        (DetectorOptions, {"widht": "96"}, "widht"),
        (DetectorOptions, {"width": "100"}, "width"),
        (DetectorOptions, {"downscale": "3"}, "downscale"),
        (DetectorOptions, {"stride": "4", "downscale": "4"}, "stride"),
        (PixelOptions, {"ignore_classes": "tree"}, "ignore_classes"),
        (PixelOptions, {"preset": "tiny"}, "preset"),
    ],
)
def test_wrong_arguments_are_named(kind: type, arguments: dict[str, str], named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        read_options(kind, arguments)


def test_the_kind_of_model_decides_which_arguments_exist() -> None:
    balancing = [ModelArgument(name="class_balancing", value="True")]
    assert isinstance(options_of(parameters(model_type="UNET", model_arguments=balancing)), PixelOptions)
    with pytest.raises(BadInputError, match="class_balancing"):
        options_of(parameters(model_arguments=balancing))


@pytest.mark.parametrize(
    ("values", "tile_size", "chips", "message"),
    [
        ({"chip_size": 512}, 256, 9, "smaller chip_size"),
        ({"chip_size": 96}, 256, 9, "multiple of 64"),
        ({}, 48, 9, "Export larger tiles"),
        ({}, 256, 1, "Export more chips"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    values: dict[str, object], tile_size: int, chips: int, message: str
) -> None:
    given = parameters(model_type="UNET", **values)
    options = read_options(PixelOptions, {"preset": "light"})
    with pytest.raises((BadInputError, TrainingDataError), match=message):
        check_sizes(given, options, tile_size, chips)


def test_frozen_random_weights_are_refused() -> None:
    given = parameters(freeze_model=True)
    with pytest.raises(BadInputError, match="freeze_model"):
        check_sizes(given, read_options(DetectorOptions, {"pretrained": "False"}), 256, 9)


def test_a_monitor_of_the_other_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="AVERAGE_PRECISION"):
        parameters(monitor="MIOU")
