"""What a training shows of itself: curves, sample predictions, per-class values, as pictures and a page.

The page is an HTML fragment with its pictures inside, as arcgis.learn writes it
(docs/formats/emd-dlpk.md, "DLPK").
"""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from tasks.assess.drawings import new_figure, png_of
from tasks.imagery.identity import unsigned
from tasks.labels import ClassSchema
from tasks.train.assembly import Samples
from tasks.train.characteristics import accuracy_pictures
from tasks.train.datasets import IGNORED, InstanceChips, LabelChips, PixelChips
from tasks.train.image_chips import Pictures, TranslationChips, UnpairedChips
from tasks.train.modules import LabelModule
from tasks.train.pairs import PairChips
from tasks.train.panoptic_chips import PanopticChips
from tasks.train.parameters import TrainParameters
from tasks.train.result import Trained

_SAMPLES = 4
_SAMPLE_PX = 256
_GAP_PX = 6
_STRETCH = (2.0, 98.0)  # percentiles of the display stretch for imagery that is not 8-bit RGB

# Numbers of the run, which the page tells in its own words; all others are what it reached.
_OF_THE_RUN = frozenset({"epochs", "steps", "learning_rate", "batch_size", "processes", "seed"})
_NAMES = {
    "miou": "mIoU",
    "f1_score": "F1",
    "coco_map": "COCO mAP",
    "psnr": "PSNR",
    "psnr_of_input": "PSNR of the input",
    "ssim": "SSIM",
    "l1": "L1",
    "valid_loss": "Validation loss",
    "threshold": "Least confidence of precision, recall and F1",
}

Picture = npt.NDArray[np.uint8]  # (rows, cols, 3)


def draw_pictures(trained: Trained, schema: ClassSchema) -> dict[str, bytes]:
    """PNG files by name: ``loss_graph.png``, ``show_results.png``, ``worst_samples.png``, and of accuracy."""
    pictures = {"loss_graph.png": _curves(trained.history), "show_results.png": _samples(trained, schema)}
    pictures["worst_samples.png"] = _sheet(trained, _worst(trained), schema)
    return pictures | accuracy_pictures(trained, schema)


def metrics_page(parameters: TrainParameters, trained: Trained, pictures: dict[str, bytes]) -> str:
    """``model_metrics.html``."""
    metrics = trained.metrics
    chips = metrics["chips"]
    facts = {
        "Model": parameters.model_type,
        **({"Backbone": parameters.backbone} if parameters.backbone else {}),
        "First weights": metrics["first_weights"],
        "Learning rate": f"{metrics['learning_rate']:g}",
        "Epochs": metrics["epochs"],
        "Chips": f"{chips['train']} for training, {chips['validation']} for validation, "
        f"{chips['dropped']} left out because they overlap validation chips",
        "Split": f"{chips['split_by']}, with a buffer of {chips['buffer']:g} chips; seed {metrics['seed']}",
        "Training data": ", ".join(map(unsigned, parameters.in_folder)),
        "Batch size": metrics["batch_size"],
        "Device": f"{metrics['device']}, {metrics['arithmetic']}",
        "Software": ", ".join(f"{name} {number}" for name, number in metrics["versions"].items()),
        **_totals(metrics),
    }
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    per_class = metrics["per_class"]
    columns = list(next(iter(per_class.values()))) if per_class else []
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(f"<td>{_shown(values[column])}</td>" for column in columns)
        + "</tr>"
        for name, values in per_class.items()
    )
    doubts = "".join(f"<p><strong>{html.escape(doubt)}</strong></p>\n" for doubt in metrics["doubts"])
    images = "".join(
        f"<h3>{html.escape(name.removesuffix('.png').replace('_', ' '))}</h3>"
        f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, data in pictures.items()
    )
    return (
        f"<h2>{html.escape(parameters.output_name)}</h2>\n{doubts}<table>{rows}</table>\n"
        f"<h3>Values on the validation chips</h3>\n"
        f"<table><tr><th>class</th>{head}</tr>{body}</table>\n{_intervals(metrics['intervals'])}\n{images}\n"
    )


def _totals(metrics: dict[str, Any]) -> dict[str, str]:
    """What was reached over all validation chips and classes."""
    numbers = {
        name: value
        for name, value in metrics.items()
        if name not in _OF_THE_RUN and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {
        _NAMES.get(name, name.replace("_", " ").capitalize()): _shown(value)
        for name, value in numbers.items()
    }


def _intervals(intervals: dict[str, Any]) -> str:
    rows = [(name, row) for name, row in intervals.items() if isinstance(row, dict)]
    if not rows:
        return ""
    columns = list(rows[0][1])
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>"
        + "".join("<td>{} to {}</td>".format(*map(_shown, row[column])) for column in columns)
        + "</tr>"
        for name, row in rows
    )
    return (
        f"<h3>{100 * intervals['level']:.0f} % intervals, by a bootstrap over {intervals['blocks']} blocks "
        f"of ground</h3>\n<table><tr><th>class</th>{head}</tr>{body}</table>"
    )


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value == int(value) and abs(value) > 1 else f"{value:.3f}"


def _curves(history: list[dict[str, float]]) -> bytes:
    figure = new_figure(6, 3.5)
    axes = figure.add_subplot()
    for name in ("train_loss", "valid_loss"):
        points = [(row["epoch"], row[name]) for row in history if name in row and np.isfinite(row[name])]
        if points:
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), marker=".", markersize=3)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return png_of(figure)


def _samples(trained: Trained, schema: ClassSchema) -> bytes:
    """Validation chips with the truth above and the prediction below; those with the most labels."""
    return _sheet(trained, _telling(trained.validation), schema)


def _worst(trained: Trained) -> list[int]:
    """The validation chips with the largest errors."""
    errors = np.nan_to_num(trained.module.chip_errors(), nan=-1.0)
    return [int(index) for index in np.argsort(-errors, kind="stable")[:_SAMPLES]]


def _sheet(trained: Trained, chosen: list[int], schema: ClassSchema) -> bytes:
    cells = [_sample(trained, index, schema) for index in chosen]
    step = _SAMPLE_PX + _GAP_PX
    sheet = Image.new("RGB", (step * len(cells) - _GAP_PX, 2 * step - _GAP_PX), "white")
    for column, (truth, predicted) in enumerate(cells):
        sheet.paste(truth, (column * step, 0))
        sheet.paste(predicted, (column * step, step))
    stream = io.BytesIO()
    sheet.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _telling(validation: Samples) -> list[int]:
    looked_at = range(min(len(validation), 64))
    amount = {index: validation.amount(index) for index in looked_at}
    return sorted(looked_at, key=lambda index: (-amount[index], index))[:_SAMPLES]


def _sample(trained: Trained, index: int, schema: ClassSchema) -> tuple[Image.Image, Image.Image]:
    validation = trained.validation
    network: Any = trained.module.network
    if isinstance(validation, TranslationChips | UnpairedChips):
        return _pictures(trained, validation, index)
    image, target = validation[(index, 0)]
    picture = _as_rgb(trained.normalisation.undo(image.numpy()), eight_bit=trained.normalisation.imagenet)
    colors = np.array([(0, 0, 0), *(item.color for item in schema)], dtype=np.float32)
    with torch.inference_mode():
        if isinstance(validation, PixelChips):
            predicted = network(image[None])[0].argmax(dim=0).numpy()
            assert isinstance(target, torch.Tensor)
            truth = target.numpy()
            later = picture
            if isinstance(validation, PairChips):
                # What is there on the first date, what was found on the second: both are to be seen.
                pixels = trained.normalisation.undo(image.numpy())
                picture, later = (_as_rgb(part, eight_bit=False) for part in np.split(pixels, 2))
            return _tinted(picture, truth, colors), _tinted(later, predicted, colors)
        if isinstance(validation, PanopticChips):
            assert isinstance(target, dict)
            logits = network.class_logits(*network.backbone(image[None]), *image.shape[1:])
            predicted = logits[0].argmax(dim=0).numpy()
            return _tinted(picture, target["classes"].numpy(), colors), _tinted(picture, predicted, colors)
        if isinstance(validation, LabelChips):
            assert isinstance(target, torch.Tensor)
            module = trained.module
            assert isinstance(module, LabelModule)
            chosen = module.classes_of(network(image[None]).float())[0]
            return _named(picture, target.numpy() > 0.5, schema), _named(picture, chosen, schema)
        found: dict[str, Any] = network([image])[0]
    assert isinstance(target, dict)
    kept = found["scores"] >= float(trained.metrics.get("threshold") or 0.5)
    if isinstance(validation, InstanceChips):
        drawn = found["labels"][kept].numpy(), found["masks"][kept, 0].numpy() >= 0.5
        truth_layer = _painted(target["labels"].numpy(), target["masks"].numpy() > 0, picture.shape[:2])
        return (
            _tinted(picture, truth_layer, colors),
            _tinted(picture, _painted(*drawn, picture.shape[:2]), colors),
        )
    return (
        _boxed(picture, target["boxes"].numpy(), target["labels"].numpy(), schema),
        _boxed(picture, found["boxes"][kept].numpy(), found["labels"][kept].numpy(), schema),
    )


def _pictures(trained: Trained, validation: Pictures, index: int) -> tuple[Image.Image, Image.Image]:
    """What is there above, what the network made below: of pairs the target, else the picture of side A."""
    given, target = validation[(index, 0)]
    network: Any = trained.module.network
    shown = given, validation.normalisation
    if isinstance(validation, TranslationChips):
        shown = torch.where(target.isnan(), torch.zeros_like(target), target), validation.output
    else:
        network = network.a_to_b
    with torch.inference_mode():
        made = network(given[None])[0]
    above, below = (
        Image.fromarray(_as_rgb(scale.undo(part.numpy()), eight_bit=scale.imagenet))
        for part, scale in (shown, (made, validation.output))
    )
    return above.resize((_SAMPLE_PX, _SAMPLE_PX)), below.resize((_SAMPLE_PX, _SAMPLE_PX))


def _as_rgb(pixels: npt.NDArray[np.float32], *, eight_bit: bool) -> Picture:
    """Pixel values (bands, rows, cols) as a picture: 8-bit RGB as it is, else stretched."""
    shown = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    if not eight_bit:
        low, high = np.percentile(shown, _STRETCH, axis=(1, 2))
        spread = np.maximum(high - low, 1e-9)[:, None, None]
        shown = (shown - low[:, None, None]) / spread * 255
    picture: Picture = np.clip(np.rint(shown), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return picture


def _tinted(picture: Picture, labels: npt.NDArray[Any], colors: npt.NDArray[np.float32]) -> Image.Image:
    painted = picture.astype(np.float32)
    shown = (labels > 0) & (labels != IGNORED)
    painted[shown] = 0.5 * painted[shown] + 0.5 * colors[labels[shown]]
    return Image.fromarray(painted.astype(np.uint8)).resize((_SAMPLE_PX, _SAMPLE_PX))


def _painted(labels: npt.NDArray[Any], masks: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Labels of pixels, from masks (n, rows, cols); the first ones on top  # (rows, cols)."""
    layer = np.zeros(shape, np.int64)
    for label, mask in zip(labels[::-1], masks[::-1], strict=True):
        layer[mask] = label
    return layer


def _named(picture: Picture, chosen: npt.NDArray[np.bool_], schema: ClassSchema) -> Image.Image:
    image = Image.fromarray(picture).resize((_SAMPLE_PX, _SAMPLE_PX))
    names = ", ".join(name for name, has in zip(schema.names, chosen, strict=True) if has) or "-"
    draw = ImageDraw.Draw(image)
    draw.rectangle(draw.textbbox((4, 4), names), fill="black")
    draw.text((4, 4), names, fill="white")
    return image


def _boxed(
    picture: Picture, boxes: npt.NDArray[Any], labels: npt.NDArray[Any], schema: ClassSchema
) -> Image.Image:
    image = Image.fromarray(picture)
    scale_x, scale_y = _SAMPLE_PX / image.width, _SAMPLE_PX / image.height
    image = image.resize((_SAMPLE_PX, _SAMPLE_PX))
    draw = ImageDraw.Draw(image)
    for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
        corners = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
        draw.rectangle(corners, outline=schema.classes[int(label) - 1].color, width=2)
    return image
