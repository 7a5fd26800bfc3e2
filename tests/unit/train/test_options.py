"""Model arguments: presets, bounds, one clear message."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from tasks.errors import BadInputError, TrainingDataError
from tasks.parameters import ModelArgument
from tasks.train.models.arguments import NOT_OFFERED, WITH, WITHOUT
from tasks.train.models.detectors import detector_arguments
from tasks.train.models.options import (
    DetectorOptions,
    PixelOptions,
    check_sizes,
    options_of,
    options_type,
    read_options,
)
from tasks.train.models.pixels import build_pixel_network
from tasks.train.parameters import PIXEL_MODELS, ModelType, Monitor, TrainParameters


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


@pytest.mark.parametrize(
    ("model_type", "monitors"),
    [
        ("UNET", "VALID_LOSS F1_SCORE PRECISION RECALL ACCURACY MIOU DICE"),
        ("MASKRCNN", "VALID_LOSS F1_SCORE PRECISION RECALL AVERAGE_PRECISION"),
        ("FEATURE_CLASSIFIER", "VALID_LOSS F1_SCORE PRECISION RECALL ACCURACY MULTI_LABEL_FBETA"),
        ("PIX2PIX", "VALID_LOSS"),
    ],
)
def test_what_can_be_watched_follows_from_the_kind(model_type: str, monitors: str) -> None:
    for monitor in get_args(Monitor):
        if monitor in monitors.split():
            assert parameters(model_type=model_type, monitor=monitor).monitor == monitor
        else:
            with pytest.raises(ValueError, match="choose one of"):
                parameters(model_type=model_type, monitor=monitor)


def test_a_monitor_of_the_other_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="AVERAGE_PRECISION"):
        parameters(monitor="MIOU")


def with_arguments(model_type: str, arguments: dict[str, str], **values: object) -> TrainParameters:
    given = [{"name": name, "value": value} for name, value in arguments.items()]
    return parameters(model_type=model_type, model_arguments=given, **values)


@pytest.mark.parametrize(
    ("model_type", "arguments", "message"),
    [
        ("UNET", {"width": "64"}, "no use for the model argument width: it is for FPN, PSPNET, DEEPLAB"),
        ("FPN", {"decoder": "[256, 128, 64, 32, 16]"}, "it is for UNET, UNETPLUSPLUS, MANET, CHANGEDETECTOR"),
        ("HED_EDGEDETECTOR", {"dice_loss": "True"}, "no use for the model argument dice_loss"),
        ("RETINANET", {"head_convolutions": "2"}, "it is for FCOS"),
        ("FCOS", {"ratios": "1,2"}, "it is for RETINANET, SSD, FASTERRCNN, MASKRCNN"),
        ("CONNECTNET", {"mtl_model": "linknet", "width": "64"}, "choose mtl_model = hourglass"),
        ("MULTITASK_ROADEXTRACTOR", {"decoder": "[64, 64, 32, 32, 16]"}, "choose mtl_model = unet"),
        ("SSD", {"zooms": "[0.7, 1]"}, "stride, levels and anchor_size"),
        ("PSPNET", {"use_unet": "True"}, "not offered: no U-Net follows"),
        ("CHANGEDETECTOR", {"attention_type": "PAM"}, "fusion says how"),
    ],
)
def test_what_a_network_would_not_heed_is_refused(
    model_type: str, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        options_of(with_arguments(model_type, arguments))


def test_what_a_preset_sets_is_not_given() -> None:
    for model_type in get_args(ModelType):
        if model_type != "CUSTOM":
            options_of(with_arguments(model_type, {"preset": "light"}))


def test_the_tables_name_what_there_is() -> None:
    types = set(get_args(ModelType)) - {"CUSTOM"}
    assert set(WITHOUT) | set(NOT_OFFERED) <= types
    for model_type, without in WITHOUT.items():
        assert without <= set(options_type(with_arguments(model_type, {})).model_fields)
    roads = options_type(with_arguments("CONNECTNET", {})).model_fields
    for name, values in WITH.items():
        assert set(values) == set(get_args(roads[name].annotation))
        assert set().union(*values.values()) <= set(roads)


def sizes(network: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("model_type", sorted(PIXEL_MODELS))
def test_a_network_of_pixels_heeds_what_it_takes(model_type: str) -> None:
    def built(**values: Any) -> dict[str, tuple[int, ...]]:
        options = PixelOptions(**values)
        bands = ["Red", "Green", "Blue"]
        return sizes(
            build_pixel_network(
                model_type, "timm:lcnet_035", options, bands=bands, channels=2, pretrained=False
            )
        )

    plain = built()
    for name, value in (("decoder", (96, 64, 48, 32, 24)), ("width", 32)):
        assert (built(**{name: value}) != plain) == (name not in WITHOUT[model_type])


@pytest.mark.parametrize("model_type", ["FCOS", "RETINANET", "SSD", "FASTERRCNN", "MASKRCNN"])
def test_a_detector_heeds_what_it_takes(model_type: str) -> None:
    changes: dict[str, Any] = {
        "head_convolutions": 1,
        "center_radius": 2.0,
        "scales": (1.0, 0.5),
        "ratios": (0.25, 1.0),
        "anchor_size": 7.0,
        "nms_overlap": 0.9,
    }
    plain = detector_arguments(model_type, DetectorOptions(), classes=2, bands=3)
    for name, value in changes.items():
        changed = detector_arguments(model_type, DetectorOptions(**{name: value}), classes=2, bands=3)
        assert (changed != plain) == (name not in WITHOUT[model_type])


def test_first_boxes_of_retinanet_are_as_asked() -> None:
    asked = {"scales": "[1, 0.8, 0.63]", "ratios": "0.5, 1", "anchor_size": "10", "levels": "2"}
    options = options_of(with_arguments("RETINANET", asked))
    assert isinstance(options, DetectorOptions)
    arguments = detector_arguments("RETINANET", options, classes=2, bands=3)
    assert arguments["anchor_sizes"] == ((10.0, 8.0, 6.3), (20.0, 16.0, 12.6))
    assert arguments["aspect_ratios"] == ((0.5, 1.0), (0.5, 1.0))
    for wrong in ("[]", "0", "1,-1", "a"):
        with pytest.raises(BadInputError, match="ratios"):
            options_of(with_arguments("RETINANET", {"ratios": wrong}))


def test_arguments_of_arcgis_that_are_parameters_here_become_them() -> None:
    given = with_arguments("UNET", {"chip_size": "224", "monitor": " MIOU", "dice_loss": "False"})
    assert (given.chip_size, given.monitor) == (224, "MIOU")
    assert [item.name for item in given.model_arguments] == ["dice_loss"]
    assert with_arguments("UNET", {"chip_size": "224"}, chip_size=224).chip_size == 224
    for arguments, values in (({"chip_size": "224"}, {"chip_size": 256}), ({"monitor": "IOU"}, {})):
        with pytest.raises(ValueError, match=r"given twice, as 256 and as 224|VALID_LOSS"):
            with_arguments("UNET", arguments, **values)
