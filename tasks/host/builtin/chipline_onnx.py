"""An ONNX model of a package: its session, its input normalised as the definition states.

docs/formats/python-raster-function.md, "ONNX". Runs in the host's child; see ``chipline_builtin.py``.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from chipline_builtin import Definition

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class OnnxNetwork:
    """The model on its device.

    Args:
        definition: names the weights, the bands and the normalisation.
        device: -1 for the CPU, else the GPU.

    Attributes:
        outputs: names of what the model gives.

    Raises:
        ValueError: another input than one of float32 (n, bands, rows, cols), or a GPU that this ONNX Runtime
            cannot use.
    """

    def __init__(self, definition: Definition, device: int) -> None:
        provider = "CPUExecutionProvider" if device < 0 else "CUDAExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise ValueError(
                "a GPU was asked for, and this ONNX Runtime was built for the CPU: "
                "install onnxruntime-gpu, or run on the CPU"
            )
        options = onnxruntime.SessionOptions()
        # Without a number it takes all cores and pins threads to them, also those that are not ours.
        threads = os.environ.get("OMP_NUM_THREADS", "")
        options.intra_op_num_threads = int(threads) if threads.isdigit() else len(os.sched_getaffinity(0))
        self._session = onnxruntime.InferenceSession(definition.weights, options, providers=[provider])
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            given = "; ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
            raise ValueError(f"the model takes {given}, where one float32 (n, bands, rows, cols) is expected")
        self._input = inputs[0].name
        batch = inputs[0].shape[0]
        self._batch = batch if isinstance(batch, int) and batch > 0 else None
        self.outputs = [item.name for item in self._session.get_outputs()]
        self._factor, self._summand = _normalisation(definition.values)

    def run(self, chips: np.ndarray, outputs: list[str]) -> list[list[np.ndarray]]:
        """The named outputs of each call; a model whose batch is fixed is called with as many chips.

        Args:
            chips: (n, bands, rows, cols), raw values.
            outputs: names.

        Returns:
            Per call the outputs in the order of ``outputs``; chips that fill the last call up are the last
            chip again.
        """
        batch = self._batch or len(chips)
        answers = []
        for start in range(0, len(chips), batch):
            part = chips[start : start + batch]
            if len(part) < batch:
                part = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
            images = part.astype(np.float32) * self._factor + self._summand
            answers.append(self._session.run(outputs, {self._input: images}))
        return answers


def _normalisation(values: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Factor and summand per band, (bands, 1, 1) float32; 1 and 0 where the definition states none."""
    stats = values.get("NormalizationStats")
    if stats:
        bands = [int(band) for band in values.get("ExtractBands") or range(len(stats["band_min_values"]))]
        low = np.array([stats["band_min_values"][band] for band in bands], np.float64)
        high = np.array([stats["band_max_values"][band] for band in bands], np.float64)
        mean = np.array([stats["scaled_mean_values"][band] for band in bands], np.float64)
        deviation = np.array([stats["scaled_std_values"][band] for band in bands], np.float64)
        span = high - low
    elif values.get("IsImageNetNormalization"):
        mean, deviation = np.array(_IMAGENET_MEAN), np.array(_IMAGENET_STD)
        low, span = np.zeros(3), np.full(3, 255.0)
    else:
        return np.ones((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    # A constant band carries no information, and must not divide by zero.
    span, deviation = np.where(span == 0, 1.0, span), np.where(deviation == 0, 1.0, deviation)
    factor = 1.0 / (span * deviation)
    summand = -(low / span + mean) / deviation
    return (factor.astype(np.float32)[:, None, None], summand.astype(np.float32)[:, None, None])
