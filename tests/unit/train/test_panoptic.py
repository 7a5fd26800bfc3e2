"""MASK2FORMER: its targets, the library's own numbers, what is learnt from chips, and what travels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import binary_erosion
from torch import nn

from tasks.assess.panoptic import panoptic_counts, panoptic_quality
from tasks.errors import BadInputError, TrainingDataError
from tasks.package.dlpk import open_package
from tasks.package.network_source import load_network
from tasks.package.panoptic_network import PanopticSegmenter, emit_panoptic
from tasks.tracking import Tracker
from tasks.train.augmentation import DEFAULT
from tasks.train.characteristics import confusion_of
from tasks.train.datasets import IGNORED
from tasks.train.models.layers import places
from tasks.train.models.options import PanopticOptions, options_of, read_options
from tasks.train.models.panoptic import LearningPanopticSegmenter, PanopticNetwork, build_panoptic_network
from tasks.train.normalisation import Normalisation, normalisation_of
from tasks.train.panoptic_chips import PanopticChips, collate_panoptic, things_of
from tasks.train.panoptic_module import PanopticModule
from tasks.train.report import _sample
from tasks.train.result import Trained
from tasks.train.train import fit
from tasks.training_data import TrainingData, read_chip_image, read_class_mask, read_instances
from tests.unit.train.panoptic import SMALL, STRIPE, panoptic_data
from tests.unit.train.test_checkpoints import Folder, PowerFailure, assert_same
from tests.unit.train.test_queries import noisy
from tests.unit.train.test_zoo import outlined, parameters, trained, vectorized

SIZE = 64
THINGS = (1, 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return panoptic_data(tmp_path_factory.mktemp("panoptic") / "data")


def plain(data: TrainingData) -> Normalisation:
    return normalisation_of([data], np.dtype(np.uint8))


def chips(data: TrainingData, size: int | None, **more: Any) -> PanopticChips:
    options = {"normalisation": plain(data), "recipe": DEFAULT, "multiple": 32, **more}
    return PanopticChips(data.chips, things=THINGS, size=size, **options)


def small(**more: Any) -> PanopticNetwork:
    options = read_options(PanopticOptions, SMALL)
    shared: dict[str, Any] = {"most_regions": 4, "bands": ["R", "G", "B"], "pretrained": False, **more}
    return build_panoptic_network("timm:lcnet_035", options, classes=3, **shared)


def test_a_whole_chip_is_what_its_files_say(data: TrainingData) -> None:
    assert things_of([data]) == THINGS
    assert data.classes.values == (3, 5, 7)
    samples = chips(data, None)
    for index, chip in enumerate(data.chips[:4]):
        _, target = samples[index, 0]
        expected = np.zeros((SIZE, SIZE), np.int64)
        for label, value in enumerate(data.classes.values, start=1):
            expected[read_class_mask(chip) == value] = label
        np.testing.assert_array_equal(target["classes"].numpy(), expected)
        assert target["labels"].tolist() == [1, 3]
        for mask, value in zip(target["masks"].numpy(), (3, 7), strict=True):
            np.testing.assert_array_equal(mask > 0, read_instances(chip)[value] > 0)
    assert samples.most_regions() == 4  # two objects, the stripe and the background
    assert samples.amount(0) == np.count_nonzero(read_class_mask(data.chips[0]))


def test_what_is_turned_and_cut_stays_true(data: TrainingData) -> None:
    """Each object lies on bright pixels of its own band, and on pixels of its class."""
    samples, looked_at = chips(data, 32), 0
    for draw in range(40):
        image, target = samples[draw % 4, draw]
        classes = target["classes"].numpy()
        for label, mask in zip(target["labels"].tolist(), target["masks"].numpy() > 0, strict=True):
            assert (classes[mask] == label).all()
            band = image[0 if label == 1 else 2].numpy()
            inside, outside = binary_erosion(mask, iterations=2), binary_erosion(classes == 0, iterations=2)
            if inside.any() and outside.any():
                looked_at += 1
                assert band[inside].min() > band[outside].max()
        assert set(np.unique(classes)) <= {0, 1, 2, 3}
    assert looked_at > 20


def test_unknown_pixels_are_of_no_region(data: TrainingData) -> None:
    samples = chips(data, None)
    kept = samples.read(0)
    known = np.ones((3, SIZE, SIZE), bool)
    known[:, :10] = False
    labels, layers = samples.read_label(data.chips[0], known)
    assert (layers[0][:10] == 0).all()
    assert layers.shape == kept.label[1].shape
    assert labels.tolist() == [1, 3]
    # A smaller chip of a batch is filled with the unknown.
    whole = [samples[0, 0], samples[1, 0]]
    image, target = whole[1]
    cut = {**target, "masks": target["masks"][:, :32], "classes": target["classes"][:32]}
    images, targets = collate_panoptic([whole[0], (image[:, :32], cut)])
    assert images.shape == (2, 3, SIZE, SIZE)
    assert (targets[1]["classes"][32:] == IGNORED).all()
    assert targets[1]["masks"].shape[1:] == (SIZE, SIZE)
    segmenter = LearningPanopticSegmenter(small(), THINGS, 4)
    found, masks = segmenter.regions(targets[1])
    assert not masks[:, 32:].any()
    assert found.tolist() == [1, 3, 0]  # of the stripe nothing is left


def test_a_place_is_told_alike_by_coarse_and_by_fine_maps() -> None:
    fine, coarse = (places(torch.zeros(1, 3, 4, 6), 32), places(torch.zeros(1, 3, 2, 3), 32, step=2))
    waves = fine.reshape(4, 6, 32)
    lengths = np.array([10_000.0 ** (-number / 8) for number in range(8)])
    for row in range(2):
        for col in range(3):
            down, right = np.outer([2 * row + 0.5, 2 * col + 0.5], lengths)
            wanted = np.concatenate([np.sin(down), np.cos(down), np.sin(right), np.cos(right)])
            np.testing.assert_allclose(coarse[0, 3 * row + col], wanted, atol=1e-6)
            first = np.concatenate([np.sin(row * lengths), np.cos(row * lengths)])
            np.testing.assert_allclose(waves[row, col, :16], first, atol=1e-6)


def both() -> tuple[PanopticNetwork, Any]:
    """Ours, and the library's decoder with the same weights and our places."""
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former import modeling_mask2former as library

    ours = small().eval()
    noisy(ours)
    configuration: Any = Mask2FormerConfig
    config = configuration(hidden_dim=32, dim_feedforward=128, num_queries=8, decoder_layers=3, num_labels=4)
    theirs: Any = library.Mask2FormerTransformerModule(32, config).eval()

    class Places(nn.Module):
        def forward(self, shape: Any, *_: Any) -> torch.Tensor:
            step = SIZE // 8 // shape[2]
            return places(torch.zeros(tuple(shape)), 32, step=step)[0].T.reshape(1, 32, *shape[2:])

    theirs.position_embedder = Places()
    theirs.queries_embedder.weight.data, theirs.queries_features.weight.data = (
        ours.query_places.data,
        ours.queries.data,
    )
    theirs.level_embed.weight.data = ours.level_marks.data
    theirs.decoder.layernorm = ours.norm
    theirs.decoder.mask_predictor.mask_embedder = ours.mask_head
    for layer, own in zip(theirs.decoder.layers, ours.layers, strict=True):
        state = own.state_dict()
        parts = [f"cross_attn.{part}_proj" for part in "qkv"]
        for key in ("weight", "bias"):
            state[f"cross_attn.in_proj_{key}"] = torch.cat([state.pop(f"{part}.{key}") for part in parts])
        layer.load_state_dict(state)
    return ours, theirs


def test_answers_and_losses_are_those_of_the_library() -> None:
    ours, theirs = both()
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        maps = ours._maps(ours.encoder(images)[2:])
        wanted = theirs(maps[:3], ours.pyramid.mask_projection(maps[-1]), output_hidden_states=True)
        names, masks = ours.answers(images)
        for name, mask, hidden, expected in zip(
            names, masks, wanted.intermediate_hidden_states, wanted.masks_queries_logits, strict=True
        ):
            torch.testing.assert_close(mask, expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(name, ours.class_head(hidden.transpose(0, 1)), atol=1e-4, rtol=1e-4)
    targets = [
        {
            "labels": torch.tensor([3]),
            "masks": torch.zeros(1, SIZE, SIZE, dtype=torch.uint8),
            "classes": torch.zeros(SIZE, SIZE, dtype=torch.int64),
        }
        for _ in range(2)
    ]
    for target, left in zip(targets, (4, 30), strict=True):
        target["masks"][0, 8:28, left : left + 20] = 1
        target["classes"][8:28, left : left + 20] = 3
        target["classes"][-STRIPE:] = 2
    segmenter = LearningPanopticSegmenter(ours, THINGS, 4)
    regions = [segmenter.regions(target) for target in targets]
    assert [labels.tolist() for labels, _ in regions] == [[3, 0, 2]] * 2
    segmenter.train()
    torch.manual_seed(3)
    total = torch.stack(list(segmenter.losses((names, masks), targets).values())).sum()
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentation

    configuration: Any = Mask2FormerConfig
    config = configuration(num_labels=4, train_num_points=256)
    whole: Any = Mask2FormerForUniversalSegmentation.__new__(Mask2FormerForUniversalSegmentation)
    nn.Module.__init__(whole)
    whole.criterion = type(segmenter._criterion[0])(config, {})
    whole.weight_dict = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    further = whole.get_auxiliary_logits(names, masks)
    torch.manual_seed(3)
    parts = whole.get_loss_dict(
        masks[-1], names[-1], [mask.float() for _, mask in regions], [label for label, _ in regions], further
    )
    torch.testing.assert_close(total, whole.get_loss(parts))


def test_validation_measures_without_chance_and_nothing_teaches_nothing(data: TrainingData) -> None:
    segmenter = LearningPanopticSegmenter(small(), THINGS, 4).eval()
    images, targets = collate_panoptic([chips(data, None)[index, 0] for index in range(2)])
    with torch.no_grad():
        answers = segmenter.backbone.answers(images)
        first = segmenter.losses(answers, targets)
        torch.rand(7)
        assert first == segmenter.losses(answers, targets)
    state = torch.get_rng_state()
    segmenter.losses(answers, targets)
    assert torch.equal(state, torch.get_rng_state())
    for target in targets:
        target["classes"][:] = IGNORED
        target.update(labels=target["labels"][:0], masks=target["masks"][:0])
    assert float(sum(segmenter.losses(answers, targets).values())) == 0
    # One empty chip beside another one.
    full = collate_panoptic([chips(data, None)[1, 0]])[1]
    assert float(sum(segmenter.losses(answers, [targets[0], *full]).values())) > 0


def test_the_loss_falls(data: TrainingData) -> None:
    torch.manual_seed(0)
    segmenter = LearningPanopticSegmenter(small(), THINGS, 4).train()
    images, targets = collate_panoptic([chips(data, None)[index, 0] for index in range(4)])
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=2e-3)
    totals = []
    for _ in range(8):
        total = torch.stack(
            list(segmenter.losses(segmenter.backbone.answers(images), targets).values())
        ).sum()
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.8 * totals[0]
    unused = [name for name, p in segmenter.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name in unused if not name.startswith("backbone.encoder")]
    assert not [name for name in segmenter.state_dict() if "criterion" in name]


def random_answers(count: int = 6, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    names = 3 * torch.randn(2, count, classes + 1, generator=generator)
    return names, 4 * torch.randn(2, count, 8, 8, generator=generator)


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    result: np.ndarray = powers / powers.sum(axis=axis, keepdims=True)
    return result


def test_regions_make_a_map_of_classes_and_objects_that_share_no_pixel() -> None:
    """Against sums and loops in numpy; masks are given in the image's own size, so that none is enlarged."""
    segmenter = PanopticSegmenter(nn.Identity(), THINGS, 0.5)
    names, masks = random_answers()
    chances = softmax(names.numpy().astype(np.float64), 2)[:, :, :-1]
    inside = 1 / (1 + np.exp(-masks.numpy().astype(np.float64)))
    shares = np.einsum("nqk,nqrc->nkrc", chances, inside)
    found = segmenter.class_logits(names, masks, 8, 8).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, shares / shares.sum(axis=1, keepdims=True), atol=1e-5)

    for image in range(2):
        best = chances[image].argmax(axis=1)
        things = [query for query in range(6) if best[query] in THINGS]
        wanted = []
        for query in things:
            own = np.zeros((8, 8), bool)
            for row in range(8):
                for col in range(8):
                    says = [chances[image, other].max() * inside[image, other, row, col] for other in things]
                    mine = things[int(np.argmax(says))] == query
                    own[row, col] = mine and inside[image, query, row, col] >= 0.5
            if own.any() and own.sum() >= 0.5 * (inside[image, query] >= 0.5).sum():
                score = chances[image, query].max() * inside[image, query][own].mean()
                rows, cols = np.nonzero(own)
                box = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
                wanted.append((score, int(best[query]), box, own))
        wanted.sort(key=lambda item: -item[0])
        objects = segmenter.objects(names[image], masks[image], 8, 8)
        assert len(wanted) >= 1
        np.testing.assert_allclose(objects["scores"], [item[0] for item in wanted], atol=1e-6)
        assert objects["labels"].tolist() == [item[1] for item in wanted]
        assert objects["boxes"].tolist() == [item[2] for item in wanted]
        np.testing.assert_array_equal(objects["masks"][:, 0] > 0, [item[3] for item in wanted])
        assert float(objects["masks"].sum(dim=0).max()) <= 1
    nothing = names.clone()
    nothing[:, :, 0] = 50
    empty = segmenter.objects(nothing[0], masks[0], 8, 8)
    assert [len(empty[key]) for key in ("boxes", "labels", "scores", "masks")] == [0] * 4


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_quality_is_torchmetrics(seed: int) -> None:
    from torchmetrics.detection import PanopticQuality

    rng = np.random.default_rng(seed)
    oracle = PanopticQuality(
        things={1, 3}, stuffs={0, 2}, return_per_class=True, allow_unknown_preds_category=True
    )
    total = np.zeros((4, 4))
    for _ in range(3):
        maps: list[Any] = []
        for _side in range(2):
            segments = rng.integers(0, 6, (6, 6)).repeat(4, axis=0).repeat(4, axis=1)
            if maps and rng.random() < 0.9:  # most of the truth is found
                segments = np.where(rng.random((24, 24)) < 0.85, maps[0][0], segments)
            if maps:  # what is left open counts as missed here, as in the paper, and not at all there
                segments = np.where(segments == 0, 1 + rng.integers(0, 5), segments)
            classes = np.array([0, 2, 1, 1, 3]) if not maps else maps[0][1]
            maps.append((segments, classes))
        (truth, of_truth), (found, of_found) = maps
        total += panoptic_counts(
            found.ravel(),
            truth.ravel(),
            np.ones(truth.size, np.int64),
            found_classes=of_found,
            true_classes=of_truth,
            classes=4,
        )
        pairs = [
            np.stack([np.concatenate([[9], classes])[segments], segments], axis=-1)[None]
            for segments, classes in ((found, of_found), (truth, of_truth))
        ]
        oracle.update(*(torch.from_numpy(pair) for pair in pairs))
    wanted = dict(zip([*sorted({1, 3}), *sorted({0, 2})], oracle.compute()[0].tolist(), strict=True))
    np.testing.assert_allclose(panoptic_quality(total), [wanted[label] for label in range(4)], atol=1e-6)


def test_the_network_travels_as_source_that_needs_torch_alone() -> None:
    network = small(bands=["Red", "Green", "Blue", "NIR"]).eval()
    noisy(network)
    segmenter = LearningPanopticSegmenter(network, THINGS, 4).eval()
    source = emit_panoptic(network, THINGS, 0.5)
    lines = [line.split() for line in source.splitlines()]
    imported = {words[1].split(".")[0] for words in lines if words[:1] in (["import"], ["from"])}
    assert imported == {"math", "operator", "torch"}
    twin: Any = load_network(source, segmenter.state_dict())
    assert (twin.things, twin.least_left) == (THINGS, 0.5)
    for count, rows, cols in ((1, 64, 64), (2, 96, 128), (3, 224, 160)):
        images = torch.randn(count, 4, rows, cols)
        with torch.inference_mode():
            for one, other in zip(twin.backbone(images), network(images), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_what_is_not_offered_is_refused_with_the_remedy(data: TrainingData) -> None:
    with pytest.raises(ValidationError, match="MASK2FORMER learns from the same training data"):
        parameters("MAXDEEPLAB", {})
    options = options_of(parameters("MASK2FORMER", {"preset": "light", "n_masks": "12"}))
    assert isinstance(options, PanopticOptions)
    assert (options.n_masks, options.width, options.layers, options.size_divisor) == (12, 64, 3, 32)
    with pytest.raises(BadInputError, match="n_masks = 9 or more"):
        small(most_regions=9)
    assert len(small(most_regions=4).queries) == 8
    for wrong in ({"anchor_size": "9"}, {"width": "96"}, {"mixup": "True"}):
        with pytest.raises(BadInputError, match=next(iter(wrong))):
            options_of(parameters("MASK2FORMER", wrong))
    with pytest.raises(ValidationError, match="MULTI_LABEL_FBETA does not exist for MASK2FORMER"):
        parameters("MASK2FORMER", {}, monitor="MULTI_LABEL_FBETA")
    del data


def test_classes_with_objects_are_told_by_the_folder(tmp_path: Path) -> None:
    told = panoptic_data(tmp_path / "data", 2)
    path = told.folder / "esri_model_definition.emd"
    definition = json.loads(path.read_text())
    definition["Classes"] = [item for item in definition["Classes"] if item["Value"] != 7]
    path.write_text(json.dumps(definition))
    from tasks.training_data import open_training_data

    with pytest.raises(TrainingDataError, match=r"\[7\]"):
        things_of([open_training_data(told.folder)])


@pytest.fixture(scope="module")
def learnt(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Any, Path]:
    """A short training, and the function of its package."""
    folder = tmp_path_factory.mktemp("learnt")
    given = parameters("MASK2FORMER", SMALL, max_epochs=2, learning_rate=0.002, batch_size=2)
    return *trained(given, data, folder), folder


def test_the_package_computes_what_the_network_does(
    learnt: tuple[Trained, Any, Path], data: TrainingData
) -> None:
    result, function, folder = learnt
    definition = open_package(folder / "m.dlpk", folder / "opened").definition
    assert (definition.model_type, definition.model_name) == ("PanopticSegmenter", "MASK2FORMER")
    assert definition.extras["Chipline"]["InstanceClasses"] == [3, 7]
    assert set(definition.extras["average_precision_score"]) == {"Round", "Square"}
    network: Any = result.module.network
    settings = function.getConfiguration(padding="0", batch_size="1", threshold="0.0")
    assert (settings["threshold"], settings["score_values"]) == (0.0, (0, 3, 5, 7))
    pixels = np.stack([read_chip_image(chip) for chip in data.chips[:3]])
    images = torch.from_numpy(np.stack([result.normalisation.apply(chip) for chip in pixels]))
    with torch.inference_mode():
        scores = network.class_logits(*network.backbone(images), SIZE, SIZE).softmax(dim=1).numpy()
        objects = network(images)
    np.testing.assert_allclose(function.predict_scores(pixels), scores, atol=1e-5)
    mask = np.ones((1, SIZE, SIZE), np.uint8)
    made = function.updatePixels(
        (0, 0), (SIZE, SIZE), {"pixelType": "u1"}, raster_pixels=pixels[0], raster_mask=mask
    )
    values = np.array([0, 3, 5, 7])[scores[0].argmax(axis=0)]
    assert (made["output_pixels"][0] == values).mean() > 0.999
    every = 0
    for chip, found in zip(pixels, objects, strict=True):
        features = vectorized(function, chip)
        every += len(features)
        middles = (found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2
        real = (middles < SIZE).all(dim=1)
        assert len(features) == int(real.sum())
        areas = [outlined(item["geometry"]["rings"]).area for item in features]
        assert areas == found["masks"][real].sum(dim=(1, 2, 3)).tolist()
        told = [item["attributes"]["Confidence"] for item in features]
        np.testing.assert_allclose(told, 100 * found["scores"][real].numpy(), atol=1e-3)
    assert every > 0
    function.getConfiguration(padding="0", batch_size="1", test_time_augmentation="True")
    assert function.predict_scores(pixels[:1]).shape == (1, 4, SIZE, SIZE)
    with pytest.raises(ValueError, match="test_time_augmentation is for classes of pixels"):
        vectorized(function, pixels[0])
    function.getConfiguration()


def test_a_validation_tells_pixels_objects_and_both(
    learnt: tuple[Trained, Any, Path], data: TrainingData
) -> None:
    result, _, _ = learnt
    metrics, module = result.metrics, result.module
    assert isinstance(module, PanopticModule)
    rows = metrics["per_class"]
    assert list(rows) == ["Background", "Round", "Field", "Square"]
    assert all(list(row) == list(rows["Round"]) for row in rows.values())
    assert rows["Field"]["ap"] is None
    assert rows["Field"]["iou"] is not None
    assert rows["Round"]["objects"] == metrics["chips"]["validation"]
    for name in ("average_precision", "f1_score", "threshold", "miou", "accuracy", "panoptic_quality"):
        assert 0 <= metrics[name] <= 1
    assert set(metrics["intervals"]["Round"]) == {"iou", "ap"}
    known = len(module.confusions) * SIZE * SIZE
    assert module.confusion.sum() == known
    # With a threshold that nothing reaches, every object is missed.
    assert module._qualities(2.0)[1].tolist() == [0, 0, 0, metrics["chips"]["validation"]]
    table = confusion_of(result, data.classes)
    assert table is not None
    np.testing.assert_array_equal(table[0], module.confusion)
    assert table[1] == list(rows)
    truth, drawn = _sample(result, 0, data.classes)
    assert truth.size == drawn.size == (256, 256)


@pytest.mark.slow
@pytest.mark.timeout(900)  # some hundred steps from random weights
def test_squares_are_learnt(tmp_path: Path) -> None:
    data = panoptic_data(tmp_path / "data", 24)
    values: dict[str, Any] = {"max_epochs": 80, "learning_rate": 0.002, "monitor": "PANOPTIC_QUALITY"}
    given = parameters("MASK2FORMER", {**SMALL, "layers": "3"}, stop_training=False, **values)
    result, _ = trained(given, data, tmp_path)
    found = {name: result.metrics[name] for name in ("panoptic_quality", "miou", "average_precision")}
    assert found["panoptic_quality"] > 0.7, found
    assert found["miou"] > 0.75, found
    assert found["average_precision"] > 0.8, found


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    data = panoptic_data(tmp_path / "data", 10)
    values: dict[str, Any] = {"max_epochs": 3, "batch_size": 2, "checkpoint_minutes": 0}
    torch.set_num_threads(1)

    def train(kept: Folder | None) -> Trained:
        quiet: dict[str, Any] = {"tracker": Tracker.disabled(), "progress": lambda *_: None}
        return fit(parameters("MASK2FORMER", SMALL, **values), [data], tmp_path, checkpoints=kept, **quiet)

    undisturbed = train(None)
    with pytest.raises(PowerFailure):
        train(Folder(tmp_path, killed_after=4))
    assert_same(train(Folder(tmp_path)), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ONNXRUNTIME", "OPENVINO"])
def test_engines_find_torchs_classes(
    engine: str, learnt: tuple[Trained, Any, Path], data: TrainingData
) -> None:
    _, function, _ = learnt
    function.getConfiguration(padding="0", batch_size="4", execution_engine=engine)
    report = function.settle_engine([read_chip_image(chip) for chip in data.chips])
    assert (report["execution_engine"], report["fell_back"]) == (engine, []), report
    function.getConfiguration()
