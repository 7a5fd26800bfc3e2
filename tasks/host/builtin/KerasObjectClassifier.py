"""Built in: Keras KerasClassifier, one label per feature.

docs/formats/python-raster-function.md, "Predefined configurations".
"""

from __future__ import annotations

from typing import Any

import chipline_builtin as builtin
import numpy as np

_DEFAULT_SIZE = 64


class KerasObjectClassifier:
    """The label of each chip, with a confidence from 0 to 1."""

    def __init__(self) -> None:
        self.name = "Keras classifier"
        self.description = "Labels each feature with a Keras image classifier."

    def initialize(self, **kwargs: Any) -> None:
        """Loads the network; ``model``: path of the ``.emd`` or its text."""
        import keras

        self.definition = builtin.Definition(kwargs["model"])
        self.network = keras.models.load_model(self.definition.weights, compile=False)
        shape = getattr(self.network, "input_shape", None)
        # A network that was built for one size says so: (batch, rows, cols, bands).
        fixed = shape[1] if isinstance(shape, tuple) and len(shape) == 4 and shape[1] == shape[2] else None
        self.own_size = int(fixed or _DEFAULT_SIZE)

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """The arguments a person may set, after rasters, model and device."""
        size = "Each chip is scaled to this many pixels, keeping its shape, and filled with 0 to a square."
        batch = [
            builtin.parameter(
                "batch_size", "GPLong", 64, "Batch size", "Features per call of the network.", [1, 4096]
            )
        ]
        return [
            *builtin.leading_parameters("rasters"),
            builtin.parameter(
                "resampled_image_size", "GPLong", self.own_size, "Resampled image size", size, [1, 4096]
            ),
            *(batch if self.definition.values.get("BatchSize") is None else []),
        ]

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """How features are cut out, and how many come in one call."""
        self.size = int(float(scalars["resampled_image_size"]))
        values = self.definition.values
        answer: dict[str, Any] = {
            "batch_size": int(float(values.get("BatchSize") or scalars["batch_size"])),
            "padding": 0,
            "tx": self.definition.width,
            "ty": self.definition.height,
            "CropSizeFixed": int(values.get("CropSizeFixed", 1)),
            "BlackenAroundFeature": int(values.get("BlackenAroundFeature", 0)),
            "inputMask": True,
        }
        if self.definition.bands is not None:
            answer["extractBands"] = self.definition.bands
        return answer

    def getFields(self) -> str:
        """The output table's fields, as Esri JSON."""
        text: str = builtin.fields_text(builtin.LABEL_FIELDS)
        return text

    def getGeometryType(self) -> int:
        """4: polygons."""
        return 4

    def vectorize(self, **pixelBlocks: Any) -> dict[str, str]:
        """One label per feature, in their order; takes tuples ``rasters_pixels`` and ``rasters_mask``."""
        pairs = zip(pixelBlocks["rasters_pixels"], pixelBlocks["rasters_mask"])  # noqa: B905 - Python 3.9
        blocks = [builtin.cleaned(pixels, mask)[0] for pixels, mask in pairs]
        chips = np.stack([self._square(block) for block in blocks])
        scores = np.asarray(self.network.predict_on_batch(chips), dtype=np.float64).reshape(len(chips), -1)
        if scores.shape[1] == 1:
            scores = np.concatenate([1 - scores, scores], axis=1)  # one sigmoid: the chance of the second
        if scores.shape[1] > len(self.definition.classes):
            raise ValueError(
                f"the network tells {scores.shape[1]} classes apart, and the definition lists "
                f"{len(self.definition.classes)}: list all of them, in the network's order"
            )
        features: list[dict[str, Any]] = []
        for number, (block, row) in enumerate(zip(blocks, scores), 1):  # noqa: B905 - Python 3.9
            best = int(np.argmax(row))
            name = self.definition.class_name(best + 1)
            right, bottom = block.shape[2] - 1, block.shape[1] - 1
            ring = [[0, 0], [right, 0], [right, bottom], [0, bottom]]
            features.append(builtin.feature(number, name, str(float(row[best])), [ring], key="Label"))
        answer: dict[str, str] = builtin.feature_set(features, builtin.LABEL_FIELDS)
        return answer

    def _square(self, block: np.ndarray) -> np.ndarray:
        """(bands, rows, cols) -> float32 (size, size, bands): scaled to fit, centred, the rest 0."""
        import tensorflow

        image = block.transpose(1, 2, 0).astype(np.float32)
        smaller = max(image.shape[:2]) > self.size
        square = tensorflow.image.resize_with_pad(image, self.size, self.size, antialias=smaller)
        return np.asarray(square)
