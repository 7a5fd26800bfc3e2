"""What models of pictures, lines and change reach in a minute on a CPU, beside what needs no training.

    python benchmarks/train_pictures.py [--minutes 0.75] [--threads 2] [--only SUPERRESOLUTION]

All are trained on the western example scene and scored once on the two eastern ones, through the engine:

- SUPERRESOLUTION: the scenes averaged over 4 x 4 pixels, brought back to their cells; PSNR beside bicubic and
  bilinear interpolation.
- HED_EDGEDETECTOR, BDCN_EDGEDETECTOR: outlines of the hand-drawn boxes around tree crowns, thinned; F1 with a
  tolerance of 0.5 m, beside the gradient (Sobel) of the smoothed picture. A box is not a crown's true edge:
  the figure compares methods and says little about edges as such.
- CHANGEDETECTOR: trees that were taken out of a copy of the scene (ground from elsewhere in their place); the
  copy has other light and noise and lies one pixel aside; F1 of pixels beside the smoothed difference.

Thresholds and smoothing of the methods are chosen on the western scene. Prints Markdown rows with 95 %
intervals from a bootstrap over blocks of 128 pixels.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import rasterio.features
import shapely
import torch
from numpy.typing import NDArray
from rasterio.warp import Resampling, reproject
from scipy import ndimage
from steps import exported, inferred, settle_in, trained

Array = NDArray[Any]
SCENES = Path(__file__).resolve().parents[1] / "examples" / "yellowstone_trees"
EAST = ("northeast", "southeast")
FACTOR, TOLERANCE_PX, BLOCK_PX, DRAWS = 4, 5, 128, 500
TUNED_PX = 768  # edge of the part of the western scene that thresholds are chosen on
LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MODELS = ("SUPERRESOLUTION", "HED_EDGEDETECTOR", "BDCN_EDGEDETECTOR", "CHANGEDETECTOR")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.75, help="of training, each model")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=MODELS, action="append")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="pictures-benchmark-") as name:
        folder = Path(name)
        settle_in(folder, SCENES)
        for model in chosen.only or MODELS:
            run = {"SUPERRESOLUTION": finer, "CHANGEDETECTOR": change}.get(model, edges)
            run(model, folder, chosen)


# -- what is compared ------------------------------------------------------------------------------------


def finer(model: str, folder: Path, chosen: argparse.Namespace) -> None:
    """PSNR on the eastern scenes."""
    data = export("sharp", scene("west"), "Export_Tiles")
    record = train(model, data, chosen, {"downsample_factor": str(FACTOR)})
    errors: dict[str, list[Array]] = {"network": [], "bicubic": [], "bilinear": []}
    for name in EAST:
        truth, profile = read(scene(name))
        rows, cols = (count // FACTOR * FACTOR for count in truth.shape[1:])
        truth = truth[:, :rows, :cols].astype(np.float64)
        cells = truth.reshape(3, rows // FACTOR, FACTOR, cols // FACTOR, FACTOR).mean(axis=(2, 4))
        coarse = {**profile, "transform": profile["transform"] @ rasterio.Affine.scale(FACTOR)}
        path = folder / f"{name}_coarse.tif"
        write(path, np.rint(cells).astype(np.uint8), coarse)
        made = {"network": on_grid(apply(record.package, str(path), model, f"{name}_fine"), truth, profile)}
        for method in ("bicubic", "bilinear"):
            kind = Resampling.cubic if method == "bicubic" else Resampling.bilinear
            made[method] = on_grid(str(path), truth, profile, kind)
        for method, picture in made.items():
            squares = (picture - truth) ** 2
            errors[method].append(blocks(np.stack([squares.sum(axis=0), np.full((rows, cols), 3.0)])))
    for method, parts in errors.items():
        report(model, method, "PSNR, dB", np.concatenate(parts), psnr, record, chosen)


def edges(model: str, folder: Path, chosen: argparse.Namespace) -> None:
    """F1 of thinned lines on the eastern scenes."""
    boxes = geopandas.read_file(SCENES / "trees.gpkg")
    labels = labelled(folder / "outlines.gpkg", "Outline", boxes.boundary.buffer(0.25), boxes.crs)
    data = export("outlines", scene("west"), "Classified_Tiles", labels)
    record = train(model, data, chosen, {})
    west, profile = read(scene("west"))
    part = (slice(0, TUNED_PX),) * 2
    seen = apply(
        record.package,
        scene("west"),
        model,
        "tuned",
        extent=list(rasterio.transform.array_bounds(TUNED_PX, TUNED_PX, profile["transform"])),
        keep_probabilities=True,
        top_classes=2,
    )
    certain = line_probability(seen)
    truth = drawn(boxes, west, profile)[part]
    level = max(LEVELS, key=lambda one: f1(line_counts(thin(certain >= one), truth)))
    tried = [(sigma, share) for sigma in (1.0, 2.0, 4.0) for share in (0.8, 0.85, 0.9, 0.95)]
    sigma, share = max(tried, key=lambda one: f1(line_counts(sobel(west, *one)[part], truth)))
    counts: dict[str, list[Array]] = {"network": [], "gradient": []}
    for name in EAST:
        picture, profile = read(scene(name))
        truth = drawn(boxes, picture, profile)
        arguments = {"threshold": str(level), "thinning": "True"}
        result = apply(record.package, scene(name), model, f"{model}_{name}", arguments=arguments)
        counts["network"].append(line_counts(read(result)[0][0] > 0, truth))
        counts["gradient"].append(line_counts(sobel(picture, sigma, share), truth))
    for method, parts in counts.items():
        settings = (
            f"threshold {level}" if method == "network" else f"sigma {sigma:g}, strongest {1 - share:.0%}"
        )
        report(model, f"{method}, {settings}", "F1 of lines", np.concatenate(parts), f1, record, chosen)


def change(model: str, folder: Path, chosen: argparse.Namespace) -> None:
    """F1 of changed pixels on the eastern scenes."""
    boxes = geopandas.read_file(SCENES / "trees.gpkg")
    rng = np.random.default_rng(chosen.seed)
    gone: dict[str, Array] = {}
    kept: list[Any] = []
    for name in ("west", *EAST):
        picture, profile = read(scene(name))
        later, changed, gone[name] = planted(picture, profile, boxes, rng)
        write(folder / f"{name}_later.tif", later, profile)
        kept += changed
    labels = labelled(folder / "gone.gpkg", "Gone", kept, boxes.crs)
    data = export("change", scene("west"), "Classified_Tiles", labels, later=str(folder / "west_later.tif"))
    record = train(model, data, chosen, {})
    differences = {
        name: difference(read(scene(name))[0], read(str(folder / f"{name}_later.tif"))[0]) for name in gone
    }
    tried = np.quantile(differences["west"], np.arange(0.7, 0.995, 0.01))
    level = max(tried, key=lambda one: f1(pixel_counts(differences["west"] > one, gone["west"])))
    counts: dict[str, list[Array]] = {"network": [], "difference": []}
    for name in EAST:
        result = apply(
            record.package, scene(name), model, f"change_{name}", later=str(folder / f"{name}_later.tif")
        )
        counts["network"].append(pixel_counts(read(result)[0][0] > 0, gone[name]))
        counts["difference"].append(pixel_counts(differences[name] > level, gone[name]))
    for method, parts in counts.items():
        report(model, method, "F1 of pixels", np.concatenate(parts), f1, record, chosen)


# -- methods without training ----------------------------------------------------------------------------


def sobel(picture: Array, sigma: float, share: float) -> Array:
    """Where the gradient of the smoothed picture is among the strongest, thinned  # (rows, cols)"""
    grey = ndimage.gaussian_filter(picture.mean(axis=0), sigma)
    strength = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
    return thin(strength > np.quantile(strength, share))


def difference(before: Array, after: Array) -> Array:
    """How far two dates are apart, after each band has the same mean and spread  # (rows, cols)"""
    one, other = (
        (part - part.mean(axis=(1, 2), keepdims=True)) / part.std(axis=(1, 2), keepdims=True)
        for part in (before.astype(np.float64), after.astype(np.float64))
    )
    return np.asarray(ndimage.gaussian_filter(np.abs(one - other).mean(axis=0), 4.0))


def planted(
    picture: Array, profile: dict[str, Any], boxes: geopandas.GeoDataFrame, rng: np.random.Generator
) -> tuple[Array, list[Any], Array]:
    """The scene later, without four in ten of its trees; their boxes; where those were  # (rows, cols)"""
    bands, rows, cols = picture.shape
    within = shapely.box(*rasterio.transform.array_bounds(rows, cols, profile["transform"]))
    trees = boxes[boxes.within(within)]
    changed = trees[rng.random(len(trees)) < 0.4]
    taken = rasterio.features.rasterize(trees.geometry, (rows, cols), transform=profile["transform"])
    later = picture.copy()
    gone = np.zeros((rows, cols), bool)
    outlines = []
    for outline in changed.geometry:
        window = rasterio.features.geometry_window(_Shape(rows, cols, profile["transform"]), [outline])
        row, col, height, width = (
            int(v) for v in (window.row_off, window.col_off, window.height, window.width)
        )
        for _ in range(1000):
            top, left = rng.integers(0, rows - height), rng.integers(0, cols - width)
            if not taken[top : top + height, left : left + width].any():
                later[:, row : row + height, col : col + width] = picture[
                    :, top : top + height, left : left + width
                ]
                gone[row : row + height, col : col + width] = True
                outlines.append(outline)
                break
    light = np.array([0.85, 0.95, 1.1])[:, None, None] * np.roll(later, 1, axis=2) + 8.0
    noisy = light + rng.normal(0, 5.0, (bands, rows, cols))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), outlines, gone


class _Shape:
    """What rasterio asks of a dataset to tell a window."""

    def __init__(self, rows: int, cols: int, transform: Any) -> None:
        self.height, self.width, self.transform = rows, cols, transform


# -- scores ----------------------------------------------------------------------------------------------


def thin(lines: Array) -> Array:
    """Lines of one pixel, by the function that travels in packages."""
    from tasks.package.functions.chipline_lines import thinned

    return np.asarray(thinned(torch.from_numpy(lines)[None], 16)[0].numpy())


def drawn(boxes: geopandas.GeoDataFrame, picture: Array, profile: dict[str, Any]) -> Array:
    """The outlines of the boxes, one pixel wide  # (rows, cols)"""
    lines = rasterio.features.rasterize(boxes.boundary, picture.shape[1:], transform=profile["transform"])
    return np.asarray(lines > 0)


def line_counts(found: Array, truth: Array) -> Array:
    """By block: found pixels that are right, all; true pixels that are found, all  # (blocks, 4)"""
    near_truth, near_found = (
        ndimage.distance_transform_edt(~lines) <= TOLERANCE_PX if lines.any() else lines
        for lines in (truth, found)
    )
    return blocks(np.stack([found & near_truth, found, truth & near_found, truth]).astype(np.float64))


def pixel_counts(found: Array, truth: Array) -> Array:
    """The same of pixels, without a tolerance  # (blocks, 4)"""
    return blocks(np.stack([found & truth, found, found & truth, truth]).astype(np.float64))


def blocks(values: Array) -> Array:
    """Sums over blocks of ground: (kinds, rows, cols) -> (blocks, kinds)."""
    _, rows, cols = values.shape
    return np.array(
        [
            values[:, row : row + BLOCK_PX, col : col + BLOCK_PX].sum(axis=(1, 2))
            for row in range(0, rows, BLOCK_PX)
            for col in range(0, cols, BLOCK_PX)
        ]
    )


def f1(counts: Array) -> float:
    """Of precision and recall, from the counts of blocks."""
    right, found, hit, true = counts.sum(axis=0)
    precision, recall = right / max(found, 1), hit / max(true, 1)
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def psnr(counts: Array) -> float:
    """From sums of squared errors and numbers of values."""
    squares, number = counts.sum(axis=0)
    return float(10 * np.log10(255.0**2 / (squares / number)))


def report(
    model: str,
    method: str,
    measure: str,
    counts: Array,
    value: Callable[[Array], float],
    record: Any,
    chosen: argparse.Namespace,
) -> None:
    """Print one row."""
    rng = np.random.default_rng(0)
    drawn_again = [value(counts[rng.integers(0, len(counts), len(counts))]) for _ in range(DRAWS)]
    low, high = np.quantile(drawn_again, [0.025, 0.975])
    effort = f"{chosen.minutes:g} min, {chosen.threads} threads, {record.metrics['steps']} steps"
    sys.stdout.write(
        f"| {model} | {method} | {measure} {value(counts):.3f} [{low:.3f}, {high:.3f}] | {effort} |\n"
    )
    sys.stdout.flush()


# -- the product's steps ---------------------------------------------------------------------------------


def export(
    name: str, raster: str, metadata_format: str, labels: str | None = None, later: str | None = None
) -> str:
    """The folder of the chips."""
    return exported(
        input_raster=[raster],
        input_class_data=labels,
        additional_input_raster=None if later is None else [later],
        output_location=name,
        tile_size=256,
        stride_size=128,
        metadata_format=metadata_format,
    )


def train(model: str, data: str, chosen: argparse.Namespace, arguments: dict[str, str]) -> Any:
    """The record of a training of so many minutes."""
    return trained(
        data,
        arguments,
        output_name=model.lower(),
        model_type=model,
        max_epochs=100_000,
        time_limit_minutes=chosen.minutes,
        chip_size=128 if model == "SUPERRESOLUTION" else 256,
        batch_size=8,
        seed=chosen.seed,
        processor_type="CPU",
    )


def apply(
    package_uri: str,
    raster: str,
    model: str,
    name: str,
    *,
    later: str | None = None,
    arguments: dict[str, str] | None = None,
    **more: Any,
) -> str:
    """The raster that the package makes of another one."""
    from tasks.infer.parameters import ClassifyPixelsParameters, DetectChangeParameters

    shared: dict[str, Any] = {
        "model": package_uri,
        "processor_type": "CPU",
        "output_classified_raster": name,
        "model_arguments": [{"name": key, "value": value} for key, value in (arguments or {}).items()],
        **more,
    }
    if model == "CHANGEDETECTOR":
        return inferred(DetectChangeParameters(from_raster=[raster], to_raster=[str(later)], **shared))
    return inferred(ClassifyPixelsParameters(input_raster=[raster], **shared))


def line_probability(result: str) -> Array:
    """Of each pixel to be of a line, from the kept probabilities by rank  # (rows, cols)"""
    classes = read(result)[0][0]
    ranks = read(result.removesuffix(".tif") + "_probability.tif")[0] / 255.0
    return np.where(classes > 0, ranks[0], ranks[1])


def labelled(path: Path, name: str, shapes: Any, crs: Any) -> str:
    """A layer of one class."""
    values = {"classname": [name] * len(shapes), "classvalue": [1] * len(shapes)}
    geopandas.GeoDataFrame(values, geometry=list(shapes), crs=crs).to_file(path)
    return str(path)


def scene(name: str) -> str:
    """An example scene."""
    return str(SCENES / f"{name}.tif")


def read(path: str) -> tuple[Array, dict[str, Any]]:
    """All bands, and where they lie."""
    with rasterio.open(path) as dataset:
        return dataset.read(), {"crs": dataset.crs, "transform": dataset.transform}


def write(path: Path, values: Array, profile: dict[str, Any]) -> None:
    """A GeoTIFF without loss."""
    bands, rows, cols = values.shape
    form = {"driver": "GTiff", "count": bands, "height": rows, "width": cols, "compress": "deflate"}
    with rasterio.open(path, "w", dtype=values.dtype, **form, **profile) as target:
        target.write(values)


def on_grid(path: str, like: Array, profile: dict[str, Any], kind: Resampling = Resampling.nearest) -> Array:
    """A raster on the cells of another one  # (bands, rows, cols) float64"""
    made = np.zeros(like.shape, np.float64)
    values, place = read(path)
    where: dict[str, Any] = {"src_crs": place["crs"], "src_transform": place["transform"]}
    where |= {"dst_crs": profile["crs"], "dst_transform": profile["transform"]}
    reproject(values.astype(np.float64), made, resampling=kind, **where)
    return np.clip(np.rint(made), 0, 255)


if __name__ == "__main__":
    main()
