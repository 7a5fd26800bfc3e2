"""Models of pairs and of pictures: each learns a step on real chips, and its package does what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from affine import Affine
from rasterio.warp import Resampling, reproject
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tasks.errors import BadInputError, TrainingDataError
from tasks.tracking import Tracker
from tasks.train import images
from tasks.train import train as training
from tasks.train.image_chips import coarsened, scaled
from tasks.train.models.change import build_change_network
from tasks.train.models.lines import directions_of
from tasks.train.models.options import ChangeOptions, options_of
from tasks.train.packaging import build
from tasks.train.parameters import LINE_KINDS, TrainParameters, kind_of
from tasks.train.report import draw_pictures, metrics_page
from tasks.train.result import Trained
from tasks.train.train import fit
from tasks.training_data import TrainingData, read_chip_image, read_chip_image2
from tests.unit.train.packaged import packaged_function
from tests.unit.train.pictures import (
    CELL,
    change_data,
    changed,
    paired_data,
    scene_chips,
    sharp_data,
    two_sides,
    write,
)
from tests.unit.train.test_checkpoints import Folder, PowerFailure, assert_same

TINY_DECODER = "16,16,16,16,16"


def parameters(model_type: str, arguments: dict[str, str] | None = None, **values: Any) -> TrainParameters:
    thin = kind_of(model_type) in LINE_KINDS  # whose networks have no such decoder
    given = {"pretrained": "False", **({} if thin else {"decoder": TINY_DECODER}), **(arguments or {})}
    if model_type in ("PIX2PIX", "PIX2PIXHD", "CYCLEGAN"):
        given = {"discriminator": "8", **given}
    if model_type == "PIX2PIXHD":
        few = {"discriminators": "2", "global_blocks": "1", "local_blocks": "1", "width": "8"}
        given = {**few, **given}
    return TrainParameters.model_validate(
        {
            "in_folder": ["x"],
            "output_name": "m",
            "model_type": model_type,
            "backbone_model": "timm:lcnet_035",
            "max_epochs": 1,
            "batch_size": 4,
            "validation_percent": 30,
            "processor_type": "CPU",
            "model_arguments": [{"name": name, "value": value} for name, value in given.items()],
            **values,
        }
    )


def trained(given: TrainParameters, data: TrainingData, folder: Path, **more: Any) -> tuple[Trained, Any]:
    """The trained model and the inference function of its package."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    result = fit(given, [data], folder, tracker=Tracker.disabled(), progress=lambda *_: None, **more)
    package = build(given, data, result, page="", pictures={}, into=folder)
    return result, packaged_function(package, folder / "unpacked")


def blocks(function: Any, pixels: np.ndarray, **arguments: str) -> np.ndarray:
    """What updatePixels gives for one tile without padding."""
    function.getConfiguration(padding="0", batch_size="1", tile_size=str(pixels.shape[1]), **arguments)
    info = function.updateRasterInfo(output_info={})["output_info"]
    answer = function.updatePixels(
        (0, 0), pixels.shape[1:], {"pixelType": info["pixelType"]}, raster_pixels=pixels, raster_mask=None
    )
    made: np.ndarray = answer["output_pixels"]
    assert answer["output_mask"].shape[-2:] == made.shape[-2:]
    assert len(made) == info["bandCount"]
    return made


@pytest.mark.parametrize("fusion", ["difference", pytest.param("concatenation", marks=pytest.mark.slow)])
def test_a_model_of_change_travels(fusion: str, tmp_path: Path) -> None:
    data = change_data(tmp_path / "data")
    given = parameters("CHANGEDETECTOR", {"fusion": fusion}, max_epochs=2, learning_rate=0.004)
    result, function = trained(given, data, tmp_path / "work")
    chip = data.chips[0]
    pair = np.concatenate([read_chip_image(chip), read_chip_image2(chip)])
    scores = function.predict_scores(pair[None])
    with torch.inference_mode():
        expected = torch.softmax(
            result.module.network(torch.from_numpy(result.normalisation.apply(pair)[None])), dim=1
        )
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)
    definition = function.network.definition
    assert definition["ModelName"] == "ChangeDetector"
    assert definition["ExtractBands"] == [0, 1, 2, 3, 4, 5]
    assert set(np.unique(blocks(function, pair))) <= {0, 4}
    assert result.metrics["per_class"]["Gone"]["iou"] is not None
    assert draw_pictures(result, data.classes)["show_results.png"]


@pytest.mark.parametrize("fusion", ["difference", "concatenation"])
def test_the_decoder_sees_what_differs(fusion: str) -> None:
    torch.manual_seed(0)
    options = options_of(parameters("CHANGEDETECTOR", {"fusion": fusion}))
    assert isinstance(options, ChangeOptions)
    network = build_change_network(
        "timm:lcnet_035", options, bands=("r", "g", "b"), channels=2, pretrained=False
    ).eval()
    before = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        scores = network(torch.cat([before, before], dim=1))
        swapped = network(torch.cat([before, before.flip(0)], dim=1))
    # Of equal dates the difference is nothing, whatever they show.
    assert torch.allclose(scores[0], scores[1], atol=1e-5) is (fusion == "difference")
    assert not torch.allclose(scores[0], swapped[0], atol=1e-5)


def test_a_sharper_picture_travels(tmp_path: Path) -> None:
    data = sharp_data(tmp_path / "data")
    given = parameters("SUPERRESOLUTION", {"downsample_factor": "2"}, max_epochs=2)
    result, function = trained(given, data, tmp_path / "work")
    coarse, _ = coarsened(read_chip_image(data.chips[0]), None, 2)
    made = blocks(function, coarse)
    with torch.inference_mode():
        expected = result.module.network(torch.from_numpy(result.normalisation.apply(coarse)[None]))[0]
    wanted = np.clip(np.rint(result.normalisation.undo(expected.numpy())), 0, 255)
    assert made.dtype == np.uint8
    assert np.abs(made.astype(int) - wanted).max() <= 1
    assert np.mean(made != wanted) < 0.01
    metrics = result.metrics
    assert metrics["psnr"] > metrics["psnr_of_input"] - 1.0 > 10
    assert function.network.definition["ModelType"] == "SuperResolution"
    assert float(function.network.definition["PSNR"]) == pytest.approx(metrics["psnr"], rel=1e-3)
    pictures = draw_pictures(result, data.classes)
    page = metrics_page(given, result, pictures)
    for name in ("psnr", "psnr_of_input", "ssim", "valid_loss"):
        assert f"<td>{metrics[name]:.3f}</td>" in page, name
    assert f"torch {torch.__version__.partition('+')[0]}" in page


def test_pictures_are_scaled_before_they_are_sharpened(tmp_path: Path) -> None:
    data = sharp_data(tmp_path / "data")
    given = parameters("SUPERRESOLUTION", {"downsample_factor": "2"}, resize_to=32)
    result, function = trained(given, data, tmp_path / "work")
    definition = function.network.definition
    assert (definition["ImageHeight"], definition["resize_to"]) == (32, 32)
    assert definition["MinCellSize"]["x"] == 2 * CELL  # half of the pixels, of twice the size
    image, target = cast("tuple[torch.Tensor, torch.Tensor]", result.validation[0, 0])
    chip = read_chip_image(result.chips[result.split.validation[0]])
    halved = np.rint(chip.astype(np.float64).reshape(3, 32, 2, 32, 2).mean(axis=(2, 4)))
    shown = result.normalisation.undo(target.numpy())
    assert np.abs(shown - halved).max() <= 1  # halves are rounded either way
    coarse, _ = coarsened(halved.astype(np.uint8), None, 2)
    assert np.abs(result.normalisation.undo(image.numpy()) - coarse).max() <= 1
    assert blocks(function, coarse).shape == (3, 32, 32)


@pytest.mark.parametrize("scale", [0.5, 2.0, 0.75])
def test_what_is_not_known_stays_unknown_when_scaled(scale: float) -> None:
    chip = scene_chips(1)[0]
    known = np.ones(chip.shape, bool)
    known[:, 20:40, 30:33] = False
    hidden = chip.copy()
    hidden[~known] = 255
    (made, seen), (other, _) = (scaled(picture, known, scale) for picture in (chip, hidden))
    whole, everywhere = scaled(chip, None, scale)
    assert everywhere is None
    assert seen is not None
    assert made.shape == seen.shape == (3, *(round(64 * scale),) * 2)
    assert made.dtype == np.uint8
    assert 0 < np.count_nonzero(~seen) < 0.15 * seen.size
    np.testing.assert_array_equal(made[seen], whole[seen])
    np.testing.assert_array_equal(made[seen], other[seen])


def test_values_of_pictures_are_those_of_torchmetrics(tmp_path: Path) -> None:
    data = sharp_data(tmp_path / "data")
    result, function = trained(parameters("SUPERRESOLUTION", max_epochs=1), data, tmp_path / "work")
    chips = [result.chips[index] for index in result.split.validation]
    truth = torch.from_numpy(np.stack([read_chip_image(chip) for chip in chips])).float()
    made = torch.from_numpy(
        np.stack([blocks(function, coarsened(read_chip_image(chip), None, 4)[0]) for chip in chips])
    ).float()
    psnr = peak_signal_noise_ratio(made, truth, data_range=255.0)
    ssim: Any = structural_similarity_index_measure(made, truth, data_range=255.0)
    assert result.metrics["psnr"] == pytest.approx(float(psnr), abs=0.05)
    assert result.metrics["ssim"] == pytest.approx(float(ssim), abs=0.005)
    assert result.metrics["l1"] == pytest.approx(float((made - truth).abs().mean()), abs=0.05)


def test_coarse_cells_look_as_the_reader_brings_them() -> None:
    chip = scene_chips(1)[0].astype(np.float32)
    made, _ = coarsened(chip, None, 4)
    cells = chip.reshape(3, 16, 4, 16, 4).mean(axis=(2, 4))
    read = np.zeros_like(chip)
    reproject(
        cells,
        read,
        src_transform=Affine(4, 0, 0, 0, -4, 64),
        dst_transform=Affine(1, 0, 0, 0, -1, 64),
        src_crs="EPSG:32612",
        dst_crs="EPSG:32612",
        resampling=Resampling.bilinear,
    )
    np.testing.assert_allclose(made, read, atol=0.01)
    assert coarsened(chip.astype(np.uint8), None, 4)[0].dtype == np.uint8


@pytest.mark.parametrize("model_type", ["PIX2PIX", "PIX2PIXHD"])
def test_a_translated_picture_travels(model_type: str, tmp_path: Path) -> None:
    data = paired_data(tmp_path / "data")
    result, function = trained(parameters(model_type, max_epochs=2), data, tmp_path / "work")
    pixels = read_chip_image(data.chips[0])
    made = blocks(function, pixels)
    with torch.inference_mode():
        expected = result.module.network(torch.from_numpy(result.normalisation.apply(pixels)[None]))[0]
    output: Any = result.module
    wanted = np.clip(np.rint(output.output.undo(expected.numpy())), 0, 255)
    assert made.shape == (1, 64, 64)
    assert np.abs(made.astype(int) - wanted).max() <= 1
    assert result.metrics["steps"] == 2 * (len(result.split.train) // 4)
    wanted_type = {"PIX2PIX": "Pix2Pix", "PIX2PIXHD": "Pix2PixHD"}[model_type]
    assert function.network.definition["ModelType"] == wanted_type
    assert draw_pictures(result, data.classes)["worst_samples.png"]


def test_both_ways_travel(tmp_path: Path) -> None:
    data = two_sides(tmp_path / "data")
    result, function = trained(parameters("CYCLEGAN"), data, tmp_path / "work")
    network: Any = result.module.network
    pixels = read_chip_image(data.chips[0])
    for direction, one in (("AtoB", network.a_to_b), ("BtoA", network.b_to_a)):
        made = blocks(function, pixels, direction=direction)
        with torch.inference_mode():
            expected = one(torch.from_numpy(result.normalisation.apply(pixels)[None]))[0]
        wanted = np.clip(np.rint(result.normalisation.undo(expected.numpy())), 0, 255)
        assert np.abs(made.astype(int) - wanted).max() <= 1
    assert {chip.footprint[0] > 550_000 for chip in kept(result) if chip.footprint} == {True, False}
    assert result.metrics["l1_a_again"] > 0
    assert result.metrics["change_a_to_b"] > 0
    assert draw_pictures(result, data.classes)["show_results.png"]


def without_batches(builder: Any) -> Any:
    """Networks without a layer that sees the whole batch."""

    def build_one(*args: Any, **options: Any) -> torch.nn.Module:
        network: torch.nn.Module = builder(*args, **options)
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, torch.nn.BatchNorm2d):
                    setattr(module, name, torch.nn.Identity())
        return network

    return build_one


@pytest.mark.parametrize(
    "model_type",
    ["PIX2PIX", *(pytest.param(name, marks=pytest.mark.slow) for name in ("PIX2PIXHD", "CYCLEGAN"))],
)
def test_two_batches_add_up_to_one_for_networks_that_take_turns(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("build_generator", "build_enhanced_generator"):
        monkeypatch.setattr(images, name, without_batches(getattr(images, name)))
    # Adam divides by a gradient's size, and the signs of differences are gradients here: what float32 rounds
    # in another order grows to 1e-5 within these steps.
    monkeypatch.setattr(training, "precision_of", lambda *_: "64-true")
    torch.set_num_threads(1)
    data = (two_sides if model_type == "CYCLEGAN" else paired_data)(tmp_path / "data")
    made = []
    batches: dict[str, dict[str, Any]] = {
        "one": {"batch_size": 4},
        "two": {"batch_size": 2, "accumulate_batches": 2},
    }
    for name, more in batches.items():
        given = parameters(model_type, max_epochs=2, learning_rate=1e-3, **more)
        (tmp_path / name).mkdir()
        result = fit(given, [data], tmp_path / name, tracker=Tracker.disabled(), progress=lambda *_: None)
        made.append((result.metrics["steps"], result.module.state_dict()))
    (steps, ours), (as_many, theirs) = made
    assert steps == as_many > 1
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-9, rtol=1e-7)


def kept(result: Trained) -> list[Any]:
    """The validation chips."""
    return [result.chips[index] for index in result.split.validation]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["PIX2PIX", "CYCLEGAN"])
def test_the_same_seed_gives_the_same_weights(model_type: str, tmp_path: Path) -> None:
    make = paired_data if model_type == "PIX2PIX" else two_sides
    data = make(tmp_path / "data", count=8)
    both = [trained(parameters(model_type), data, tmp_path / name)[0] for name in ("one", "two")]
    other, _ = trained(parameters(model_type, seed=2), data, tmp_path / "three")
    states = [result.module.network.state_dict() for result in (*both, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize(
    ("model_type", "make", "values", "message"),
    [
        ("CHANGEDETECTOR", sharp_data, {}, "Classified_Tiles"),
        ("PIX2PIX", sharp_data, {}, "additional_input_raster"),
        ("UNET", change_data, {}, "pairs of pictures"),
        ("CYCLEGAN", paired_data, {}, "metadata_format = CycleGAN"),
        (
            "PIX2PIXHD",
            paired_data,
            {"chip_size": 64, "arguments": {"discriminators": "3"}},
            "need chips of 128",
        ),
        (
            "SUPERRESOLUTION",
            sharp_data,
            {"augmentation": "CUSTOM", "augmentation_parameters": [["rotate", "3"]]},
            "DEFAULT or NONE",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    model_type: str, make: Any, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    data = make(tmp_path / "data", count=4)
    given = parameters(model_type, **values) if model_type != "UNET" else parameters("UNET", {})
    with pytest.raises((BadInputError, TrainingDataError), match=message):
        trained(given, data, tmp_path / "work")


@pytest.mark.parametrize(
    ("model_type", "arguments"),
    [
        pytest.param("HED_EDGEDETECTOR", {}, marks=pytest.mark.slow),
        ("BDCN_EDGEDETECTOR", {"width": "32"}),
        pytest.param("MULTITASK_ROADEXTRACTOR", {"mtl_model": "unet"}, marks=pytest.mark.slow),
        pytest.param("MULTITASK_ROADEXTRACTOR", {"mtl_model": "linknet"}, marks=pytest.mark.slow),
        ("MULTITASK_ROADEXTRACTOR", {"mtl_model": "hourglass", "width": "32", "gaussian_thresh": "0.9"}),
        ("CONNECTNET", {"width": "32", "orient_bin_size": "10", "orient_theta": "4"}),
    ],
)
def test_a_model_of_lines_travels(model_type: str, arguments: dict[str, str], tmp_path: Path) -> None:
    before = scene_chips(10)
    after, masks = changed(before)
    data = write(tmp_path / "data", "Classified_Tiles", after, masks=masks)
    given = parameters(model_type, arguments, learning_rate=0.004)
    result, function = trained(given, data, tmp_path / "work")
    pixels = read_chip_image(data.chips[0])
    with torch.inference_mode():
        logits = result.module.network(torch.from_numpy(result.normalisation.apply(pixels)[None]))
    np.testing.assert_allclose(
        function.predict_scores(pixels[None]), torch.softmax(logits, dim=1).numpy(), atol=1e-5
    )
    assert logits.shape == (1, 2, 64, 64)
    assert result.metrics["per_class"]["Gone"]["recall"] is not None


@pytest.mark.parametrize(("degrees", "wanted"), [(5, 0), (35, 1), (95, 4), (125, 6), (175, 8)])
def test_directions_are_those_of_drawn_roads(degrees: float, wanted: int) -> None:
    rows, cols = np.mgrid[0:96, 0:96] - 48
    angle = np.deg2rad(degrees)
    # Rows run downwards: the distance from a straight line through the middle.
    road = np.abs(cols * np.sin(angle) + rows * np.cos(angle)) < 4
    found = directions_of(torch.from_numpy(road[None].astype(np.float32)), 9, 6.0)[0].numpy()
    inner = found[24:-24, 24:-24][road[24:-24, 24:-24]]
    assert np.mean(inner == wanted) > 0.95


@pytest.mark.parametrize("model_type", ["PIX2PIX", pytest.param("CYCLEGAN", marks=pytest.mark.slow)])
def test_networks_that_take_turns_go_on_where_they_were_killed(model_type: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    data = (paired_data if model_type == "PIX2PIX" else two_sides)(tmp_path / "data", count=8)
    given = parameters(model_type, batch_size=2, max_epochs=2, checkpoint_minutes=0)

    def train(kept: Folder | None) -> Trained:
        return fit(
            given, [data], tmp_path, tracker=Tracker.disabled(), progress=lambda *_: None, checkpoints=kept
        )

    whole = train(None)
    with pytest.raises(PowerFailure):
        train(Folder(tmp_path, killed_after=1))  # inside the first epoch
    assert_same(train(Folder(tmp_path)), whole)


@pytest.mark.parametrize(
    ("model_type", "arguments"),
    [
        ("HED_EDGEDETECTOR", {"focal_loss": "True"}),
        ("MULTITASK_ROADEXTRACTOR", {"mixup": "True"}),
        ("MULTITASK_ROADEXTRACTOR", {"orient_bin_size": "7"}),
        ("MULTITASK_ROADEXTRACTOR", {"mtl_model": "resnet"}),
        ("MULTITASK_ROADEXTRACTOR", {"connectivity_weight": "1"}),
        ("CONNECTNET", {"gaussian_thresh": "1"}),
        ("BDCN_EDGEDETECTOR", {"gaussian_thresh": "0.76"}),
        ("SUPERRESOLUTION", {"downscale": "2"}),
        ("CYCLEGAN", {"l1_weight": "3"}),
        ("PIX2PIX", {"feature_weight": "3"}),
    ],
)
def test_arguments_that_mean_nothing_are_refused(model_type: str, arguments: dict[str, str]) -> None:
    with pytest.raises(BadInputError, match=r"do not fit|no use"):
        options_of(parameters(model_type, arguments))


def test_only_sharper_pictures_are_resized() -> None:
    with pytest.raises(ValueError, match="resize_to does not exist for PIX2PIX"):
        parameters("PIX2PIX", resize_to=32)


def test_lines_are_of_one_class(make_data: Any, tmp_path: Path) -> None:
    data = make_data(metadata_format="Classified_Tiles", size=64, count=4)
    with pytest.raises(TrainingDataError, match="learns one class"):
        trained(parameters("HED_EDGEDETECTOR"), data, tmp_path / "work")
