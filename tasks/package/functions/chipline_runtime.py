"""What Chipline's inference functions share: definition, device, normalisation, network, super-tiles.

This file travels inside packages beside the inference function. It needs numpy and torch only and imports
nothing of Chipline. The interface it serves is stated in docs/formats/python-raster-function.md.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import chipline_agreement
import chipline_engines
import numpy as np
import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def read_definition(model: str, beside: str) -> tuple[dict[str, Any], str]:
    """The model definition and the folder its relative paths start at.

    Args:
        model: path of the ``.emd``, or its JSON text (then the paths start at ``beside``).
        beside: folder of the inference function.
    """
    try:
        with open(model, encoding="utf-8-sig") as stream:  # noqa: PTH123
            text, folder = stream.read(), os.path.dirname(os.path.abspath(model))  # noqa: PTH100, PTH120
    except OSError:
        # A JSON text is no file name; the system may also find it too long for one.
        text, folder = model, beside
    definition = json.loads(text)
    if not isinstance(definition, dict):
        raise ValueError("the model definition is no JSON object")
    return definition, folder


def choose_device(number: int, arcpy: ModuleType | None) -> torch.device:
    """The device for ArcGIS's device number: -1 the CPU, -2 the emptiest GPU, 0 and more that GPU.

    ``arcpy.env.processorType`` "CPU" wins over a GPU number; it and ``gpuId`` are set to what is used.

    Raises:
        RuntimeError: a GPU was asked for and is not there. There is no silent change to the CPU.
    """
    environment = getattr(arcpy, "env", None)
    asked = str(getattr(environment, "processorType", "") or "").upper()
    if number == -1 or (number >= 0 and asked == "CPU"):
        device = torch.device("cpu")
    elif not torch.cuda.is_available():
        if number != -2 or asked == "GPU":
            raise RuntimeError(
                f"GPU {number} was asked for, and torch finds no GPU. Use processor type CPU (device -1)."
            )
        device = torch.device("cpu")
    elif number == -2:
        free = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
        device = torch.device("cuda", free.index(max(free)))
    elif number < torch.cuda.device_count():
        device = torch.device("cuda", number)
    else:
        raise RuntimeError(f"GPU {number} was asked for; there are {torch.cuda.device_count()}.")
    if environment is not None:
        environment.processorType = "GPU" if device.type == "cuda" else "CPU"
        environment.gpuId = device.index if device.type == "cuda" else -1
    return device


def as_bool(value: Any) -> bool:
    """A host's "True"/"False" (also "1"/"0", or a bool)."""
    return str(value).strip().lower() in ("true", "1", "yes")


LARGEST_TILE = 8192
LARGEST_BATCH = 4096


def argument(scalars: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number among the arguments; ``default`` where it is not given or empty.

    Raises:
        ValueError: no number, or not from ``low`` to ``high``; whole numbers are asked for by whole limits.
    """
    given = scalars.get(name)
    if given is None or str(given).strip() == "":
        return default
    whole = isinstance(low, int) and isinstance(high, int)
    wanted = f"{'a whole number' if whole else 'a number'} from {low} to {high}"
    try:
        number = float(given)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {given!r}, must be {wanted}") from None
    if not low <= number <= high or (whole and number != int(number)):
        raise ValueError(f"{name} is {given!r}, must be {wanted}")
    return int(number) if whole else number


def choice(scalars: dict[str, Any], name: str, default: Any, allowed: tuple[str, ...]) -> str:
    """One of some words among the arguments, in any case; ``default`` where it is not given or empty.

    Raises:
        ValueError: another word.
    """
    given = scalars.get(name)
    text = str(default if given is None or str(given).strip() == "" else given).strip()
    for word in allowed:
        if text.lower() == word.lower():
            return word
    raise ValueError(f"{name} is {given!r}, must be one of {', '.join(allowed)}")


def flag(scalars: dict[str, Any], name: str, default: bool) -> bool:
    """A yes or no among the arguments.

    Raises:
        ValueError: neither.
    """
    return as_bool(choice(scalars, name, default, ("True", "False", "1", "0")))


# The eight positions of a square picture: quarter turns, and whether it is mirrored after them.
POSITIONS = tuple((quarters, mirrored) for mirrored in (False, True) for quarters in range(4))


def turned(images: torch.Tensor, position: tuple[int, bool]) -> torch.Tensor:
    """Images (n, bands, rows, cols) in one of the eight positions."""
    quarters, mirrored = position
    result = torch.rot90(images, quarters, (2, 3))
    return result.flip(3) if mirrored else result


def turned_back(scores: torch.Tensor, position: tuple[int, bool]) -> torch.Tensor:
    """What was predicted for images in a position, (n, scores, rows, cols), as the images were before."""
    quarters, mirrored = position
    return torch.rot90(scores.flip(3) if mirrored else scores, -quarters, (2, 3))


def boxes_turned_back(boxes: torch.Tensor, position: tuple[int, bool], size: float) -> torch.Tensor:
    """Boxes (n, 4) xmin, ymin, xmax, ymax found in a turned square of ``size`` pixels, in it as it was."""
    quarters, mirrored = position
    left, top, right, bottom = boxes.unbind(1)
    if mirrored:
        left, right = size - right, size - left
    for _ in range(quarters):
        left, top, right, bottom = size - bottom, left, size - top, right
    return torch.stack([left, top, right, bottom], dim=1)


def normalisation(definition: dict[str, Any], bands: list[int]) -> tuple[list[float], list[float]]:
    """Per extracted band the factor and the summand of ``x * factor + summand``.

    With NormalizationStats: ((x - min) / (max - min) - scaled_mean) / scaled_std; else ImageNet's on 0-255.
    """
    stats = definition.get("NormalizationStats")
    if stats:
        low = [float(stats["band_min_values"][band]) for band in bands]
        span = [float(stats["band_max_values"][band]) - base for band, base in zip(bands, low)]  # noqa: B905
        mean = [float(stats["scaled_mean_values"][band]) for band in bands]
        std = [float(stats["scaled_std_values"][band]) for band in bands]
    else:
        if len(bands) != 3:
            raise ValueError(
                f"{len(bands)} bands and no NormalizationStats: ImageNet's normalisation has 3 bands"
            )
        low, span = [0.0] * 3, [255.0] * 3
        mean, std = list(IMAGENET_MEAN), list(IMAGENET_STD)
    factor, summand = [], []
    for index in range(len(bands)):
        width = span[index] or 1.0  # a constant band carries no information; avoid a division by zero
        deviation = std[index] or 1.0
        factor.append(1.0 / (width * deviation))
        summand.append(-(low[index] / width + mean[index]) / deviation)
    return factor, summand


class PackagedNetwork:
    """The network of a package on its device, and what its definition says about it."""

    def __init__(self, model: str, device: int, beside: str, arcpy: ModuleType | None) -> None:
        self.definition, self.folder = read_definition(model, beside)
        self.own: dict[str, Any] = self.definition.get("Chipline") or {}
        self.device = choose_device(int(device), arcpy)
        self.bands = [int(band) for band in self.definition["ExtractBands"]]
        self.classes: list[dict[str, Any]] = self.definition["Classes"]
        self.size_divisor = int(self.own.get("SizeDivisor", 32))
        factor, summand = normalisation(self.definition, self.bands)
        shape = (1, len(factor), 1, 1)
        self._factor = torch.tensor(factor, dtype=torch.float32, device=self.device).view(shape)
        self._summand = torch.tensor(summand, dtype=torch.float32, device=self.device).view(shape)
        # The same input must give the same output: no search for the fastest kernel, no atomics.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        self.module = self._load()

    def _load(self) -> torch.nn.Module:
        name = str(self.definition["ModelConfiguration"])
        spec = importlib.util.spec_from_file_location(name, os.path.join(self.folder, name + ".py"))  # noqa: PTH118
        if spec is None or spec.loader is None:
            raise ValueError(f"the package has no network source {name}.py")
        source = importlib.util.module_from_spec(spec)
        sys.modules[name] = source
        spec.loader.exec_module(source)
        module: torch.nn.Module = source.build()
        weights = os.path.join(self.folder, str(self.definition["ModelFile"]).replace("\\", "/"))  # noqa: PTH118
        state = torch.load(weights, map_location="cpu", weights_only=True)
        module.load_state_dict(state, strict=True)
        module = module.eval().requires_grad_(False).to(self.device)
        # The layout in which convolutions run fastest on both devices; only the last digits depend on it.
        return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def room(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array to put chips into, with anything in it; for a GPU in memory that it reads by itself.

        torch keeps such memory, and gives it out again once the device has read it.
        """
        if self.device.type != "cuda":
            return np.empty(shape, dtype)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        array: np.ndarray = pinned.view(dtype).reshape(shape)
        return array

    def normalised(self, pixels: np.ndarray) -> torch.Tensor:
        """(n, bands, rows, cols) of any number type -> float32 of the same shape on the device.

        Pixels travel to the device in their own type, and are widened there. From an array of :meth:`room`
        the copy goes on while this returns.
        """
        pixels = np.ascontiguousarray(pixels)
        if pixels.dtype in (np.uint8, np.int16, np.int32, np.float32):
            tensor = torch.from_numpy(pixels).to(self.device, non_blocking=True).to(torch.float32)
        elif pixels.dtype == np.uint16:
            # torch has few operations on uint16: the same bits as int16, and the sign put right.
            wide = torch.from_numpy(pixels.view(np.int16)).to(self.device, non_blocking=True).to(torch.int32)
            tensor = wide.bitwise_and_(0xFFFF).to(torch.float32)
        else:
            tensor = torch.from_numpy(pixels.astype(np.float32)).to(self.device)
        tensor = tensor * self._factor + self._summand
        return tensor.contiguous(memory_format=torch.channels_last)

    def input_edge(self, tile: int) -> int:
        """Edge of the network's input for tiles of ``tile`` pixels: larger or smaller with ``resize_to``."""
        before, after = (self.own.get(key) for key in ("ResizeFrom", "ResizeTo"))
        return tile * int(after) // int(before) if before and after else tile

    def number(self, key: str, default: int) -> int:
        """A whole number of the definition, or ``default``."""
        value = self.definition.get(key)
        return default if value is None else int(value)


def execution(
    network: PackagedNetwork,
    tiles: SuperTile,
    scalars: dict[str, Any],
    module: torch.nn.Module | None = None,
    judge: Any = None,
) -> chipline_engines.Execution:
    """The engine that the arguments ask for; it is made and compared when it is settled or first used.

    Args:
        module: what of the network it computes; all of it by default.
        judge: see ``chipline_engines.Execution``.

    Raises:
        ValueError: an engine or a precision that does not exist.
    """
    engine = choice(scalars, "execution_engine", "TORCH", chipline_engines.ENGINES)
    precision = choice(scalars, "precision", "FLOAT32", chipline_engines.PRECISIONS)
    edge = network.input_edge(tiles.tile)
    shape = (tiles.batch, len(network.bands), edge, edge)
    return chipline_engines.Execution(module or network.module, shape, engine, precision, judge)


class Fetched:
    """Tensors on their way from the device, while it and this process go on."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._event: Any = None
        if tensors and tensors[0].is_cuda:
            rooms = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in tensors]
            tensors = [room.copy_(one, non_blocking=True) for room, one in zip(rooms, tensors)]  # noqa: B905
            event: Any = torch.cuda.Event
            self._event = event()
            self._event.record()
        self._tensors = tensors

    def arrays(self) -> list[np.ndarray]:
        """The tensors, once they are here."""
        if self._event is not None:
            self._event.synchronize()
        return [one.numpy() for one in self._tensors]


class ChosenEngine:
    """What functions share that compute with an execution engine; a host calls these if it knows them.

    A function sets ``network``, ``tiles`` and ``execution``.
    """

    network: Any
    tiles: Any
    execution: Any

    def engine_identity(self) -> dict[str, Any]:
        """All that decides, beside the package, what ``engine_kept`` gives and how engines compare."""
        identity: dict[str, Any] = self.execution.identity()
        return identity

    def settle_engine(
        self,
        blocks: list[np.ndarray],
        decided: dict[str, Any] | None = None,
        kept: bytes | None = None,
    ) -> dict[str, Any]:
        """Decides which engine computes, before the first result; see ``chipline_engines.Execution.settle``.

        Args:
            blocks: (bands, rows, cols) of one tile with its padding, or of several as ``updatePixels`` takes
                them; raw values, to compare engines on.
            decided: what another process of the same run decided, to be followed.
            kept: what ``engine_kept`` gave in an earlier process of the same identity.

        Returns:
            ``chipline_engines.Execution.report``.
        """
        with torch.inference_mode():
            report: dict[str, Any] = self.execution.settle(
                chipline_agreement.Sample(self.network, self.tiles, blocks), decided, kept
            )
        return report

    def engine_kept(self) -> bytes:
        """What makes the settled engine quicker to make in another process; empty where nothing does."""
        kept: bytes = self.execution.kept()
        return kept

    def limit_batch(self, batch: int) -> None:
        """Has the network take at most ``batch`` tiles at a time; blocks stay as they are."""
        self.tiles.limit(batch)


def cleaned(pixels: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The block with 0 where a band is masked out or not finite, and the valid pixels (rows, cols).

    Args:
        pixels: (bands, rows, cols), source dtype.
        mask: the same shape or (rows, cols), 0 where invalid; None where all is valid.

    Returns:
        The pixels, as they are or as a changed copy, and bool (rows, cols): False only where every band is
        invalid.
    """
    if mask is not None and mask.ndim == 3 and mask.strides[0] == 0:
        mask = mask[0]  # one plane for all bands
    if pixels.dtype.kind in "iu" and (mask is None or np.all(mask)):
        # What most blocks are: a mask per band takes longer than all else here, and a copy is not needed.
        return pixels, np.ones(pixels.shape[1:], dtype=bool)
    block = np.array(pixels, copy=True)
    valid = np.ones(block.shape, dtype=bool)
    if mask is not None:
        valid &= np.broadcast_to(np.asarray(mask), block.shape) != 0
    if block.dtype.kind == "f":
        valid &= np.isfinite(block)
    block[~valid] = 0
    any_band: np.ndarray = np.any(valid, axis=0)
    return block, any_band


class SuperTile:
    """How a block of one call splits into chips: rows x cols of them, each ``tile`` wide with ``padding``.

    Neighbouring chips overlap by twice the padding; their inner parts abut and fill the inner block.
    """

    def __init__(self, tile: int, padding: int, batch_size: int) -> None:
        if not 0 <= 2 * padding < tile:
            raise ValueError(
                f"padding {padding} does not fit a tile of {tile} pixels: use less than {tile // 2}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, must be at least 1")
        self.tile, self.padding = tile, padding
        self.inner = tile - 2 * padding
        # ArcGIS's rule: the largest square number of chips that the batch holds.
        self.side = math.isqrt(batch_size)
        self.batch = self.side * self.side
        self.size = self.inner * self.side
        self.at_once = self.batch

    def limit(self, batch: int) -> None:
        """Gives at most ``batch`` chips at a time; the block and its chips stay as they are."""
        self.at_once = max(1, min(int(batch), self.batch))

    def placed(self, rows: int, cols: int) -> list[tuple[int, int]]:
        """(row, col) of each chip's top-left corner in a block of ``rows`` x ``cols`` with its padding."""
        return [
            (row, col)
            for row in range(0, max(rows - 2 * self.padding, 1), self.inner)
            for col in range(0, max(cols - 2 * self.padding, 1), self.inner)
        ]

    def batches(
        self, block: np.ndarray, room: Callable[..., np.ndarray] = np.empty
    ) -> Iterator[tuple[list[tuple[int, int]], np.ndarray]]:
        """Batches of chips (n, bands, tile, tile) with their places; short blocks are filled with 0.

        Args:
            room: makes the arrays, as ``numpy.empty`` does; see ``PackagedNetwork.room``.
        """
        places = self.placed(block.shape[1], block.shape[2])
        for start in range(0, len(places), self.at_once):
            chosen = places[start : start + self.at_once]
            chips = room((len(chosen), block.shape[0], self.tile, self.tile), block.dtype)
            last = max(row for row, _ in chosen), max(col for _, col in chosen)
            if last[0] + self.tile > block.shape[1] or last[1] + self.tile > block.shape[2]:
                chips[:] = 0
            for chip, (row, col) in zip(chips, chosen):  # noqa: B905
                part = block[:, row : row + self.tile, col : col + self.tile]
                chip[:, : part.shape[1], : part.shape[2]] = part
            yield chosen, chips


def parameter(
    name: str, kind: str, value: Any, title: str, description: str, domain: Any = None
) -> dict[str, Any]:
    """One entry of ``getParameterInfo``; values are texts, as hosts hand them back."""
    entry = {
        "name": name,
        "dataType": kind,
        "value": str(value),
        "required": False,
        "displayName": title,
        "description": description,
    }
    if domain is not None:
        entry["domain"] = domain
    return entry


def leading_parameters() -> list[dict[str, Any]]:
    """The three parameters that every deep learning function starts with; a host fills them in."""
    return [
        {
            "name": "raster",
            "dataType": "raster",
            "required": True,
            "displayName": "Raster",
            "description": "The imagery.",
        },
        {
            "name": "model",
            "dataType": "string",
            "required": True,
            "displayName": "Model definition",
            "description": "Path of the .emd, or its JSON text.",
        },
        {
            "name": "device",
            "dataType": "numeric",
            "value": -1,
            "required": False,
            "displayName": "Device",
            "description": "Number of the GPU; -1 for the CPU, -2 for the emptiest GPU.",
        },
    ]


def tile_parameters(network: PackagedNetwork) -> list[dict[str, Any]]:
    """padding, batch_size and tile_size, which both functions take."""
    tile = network.number("ImageHeight", 256)
    padding = network.number("Padding", tile // 4)
    return [
        parameter(
            "padding",
            "GPLong",
            padding,
            "Padding",
            "Pixels at each side of a tile whose predictions are left to the neighbouring tile; "
            "less than half of the tile.",
            [0, LARGEST_TILE // 2 - 1],
        ),
        parameter(
            "batch_size",
            "GPLong",
            network.number("BatchSize", 4),
            "Batch size",
            "Tiles per call of the network; the largest square number within it is used.",
            [1, LARGEST_BATCH],
        ),
        parameter(
            "tile_size",
            "GPLong",
            tile,
            "Tile size",
            f"Pixels at each side of a tile; a multiple of {network.size_divisor}. "
            "The size in training is the default.",
            [network.size_divisor, LARGEST_TILE],
        ),
    ]


def engine_parameters() -> list[dict[str, Any]]:
    """execution_engine and precision."""
    return [
        parameter(
            "execution_engine",
            "GPString",
            "TORCH",
            "Execution engine",
            "What computes the network; ONNXRUNTIME and OPENVINO take less time on a CPU, COMPILED may on a "
            "GPU. One whose results are not those of TORCH in FLOAT32 on the first tiles gives way to it.",
            list(chipline_engines.ENGINES),
        ),
        parameter(
            "precision",
            "GPString",
            "FLOAT32",
            "Precision",
            "Numbers that the network computes with; BFLOAT16 is fast where the processor has it.",
            list(chipline_engines.PRECISIONS),
        ),
    ]


def augmentation_parameter(network: PackagedNetwork, what: str) -> dict[str, Any]:
    """test_time_augmentation, which both functions take; ``what`` says what becomes of the answers."""
    return parameter(
        "test_time_augmentation",
        "GPString",
        augments(network, {}),
        "Test time augmentation",
        f"True: {what} of the tile in its eight positions, turned by quarters and mirrored; "
        "eight times the work.",
        ["True", "False"],
    )


def augments(network: PackagedNetwork, scalars: dict[str, Any]) -> bool:
    """Whether test time augmentation is asked for; what is not given is the definition's."""
    default = as_bool(network.definition.get("test_time_augmentation", False))
    return flag(scalars, "test_time_augmentation", default)


def super_tile(network: PackagedNetwork, scalars: dict[str, Any]) -> SuperTile:
    """The split that the given arguments ask for; what is not given is the definition's.

    Raises:
        ValueError: a number out of its range, a tile size that is no multiple of the network's.
    """
    divisor = network.size_divisor
    tile = int(argument(scalars, "tile_size", network.number("ImageHeight", 256), divisor, LARGEST_TILE))
    if tile < 1 or tile % divisor:
        raise ValueError(f"tile_size {tile} is not a multiple of {divisor}, which this network needs")
    usual = network.number("Padding", tile // 4)
    padding = int(argument(scalars, "padding", usual, 0, LARGEST_TILE // 2 - 1))
    batch_size = int(argument(scalars, "batch_size", network.number("BatchSize", 4), 1, LARGEST_BATCH))
    return SuperTile(tile, padding, batch_size)


def configuration(network: PackagedNetwork, tiles: SuperTile) -> dict[str, Any]:
    """The keys of ``getConfiguration`` that both functions give."""
    return {
        "extractBands": tuple(network.bands),
        "padding": tiles.padding,
        "tx": tiles.size,
        "ty": tiles.size,
        "fixedTileSize": 1,
        "batch_size": tiles.batch,
        "tile_size": tiles.tile,
        "inheritProperties": 2 | 4 | 8,  # all but the pixel type
        "invalidateProperties": 2 | 4 | 8,  # statistics, histogram, key properties
        "inputMask": True,
    }
