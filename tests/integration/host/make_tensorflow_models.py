"""Makes small models with TensorFlow and Keras, and what those say themselves: the oracle of the tests.

Run by the interpreter that has both: ``python make_tensorflow_models.py FOLDER``. FOLDER/tiles.npz holds the
inputs; each model goes into a folder of its own, its answers into FOLDER/answers.npz.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

v1 = tf.compat.v1

MATTERPORT_DOUBLE = '''
"""Keeps the contract of a Mask R-CNN in Matterport's manner; finds what is brighter than its weights say."""
import h5py
import numpy as np
from skimage.measure import label


class Config:
    NAME = "double"
    BATCH_SIZE = 1


class Model:
    def load_weights(self, filepath, by_name=False):
        assert by_name
        with h5py.File(filepath) as file:
            self.level = float(file["level"][()])

    def detect(self, images, verbose=0):
        assert len(images) == config.BATCH_SIZE
        (image,) = images
        labels = label(image.max(axis=2) > self.level, connectivity=1)
        numbers = range(1, labels.max() + 1)
        masks = [labels == number for number in numbers]
        ids = [1 + int(image[mask].sum(axis=0).argmax()) for mask in masks]
        scores = [float(image[mask].max()) / 255 for mask in masks]
        shape = (28, 28, 0) if not masks else None  # as Matterport's without objects
        return [{
            "rois": np.zeros((len(masks), 4), np.int32),
            "masks": np.zeros(shape, bool) if shape else np.stack(masks, axis=-1),
            "class_ids": np.array(ids, np.int32),
            "scores": np.array(scores, np.float32),
        }]


config = Config()
model = Model()
'''


def frozen(folder: Path, build: Any) -> bytes:
    """Write the graph that ``build`` makes as model.pb."""
    graph = v1.Graph()
    with graph.as_default():
        build()
    folder.mkdir()
    data: bytes = graph.as_graph_def().SerializeToString()
    (folder / "model.pb").write_bytes(data)
    return data


def asked(data: bytes, taken: str, given: list[str], images: Any) -> list[Any]:
    """What the frozen graph answers, in a session of its own."""
    graph = v1.Graph()
    with graph.as_default():
        definition = v1.GraphDef()
        definition.ParseFromString(data)
        v1.import_graph_def(definition, name="")
    with v1.Session(graph=graph) as session:
        return list(session.run(given, {taken: images}))


def detector() -> None:
    """Cells of 8 x 8: a box around the brightest, its class the strongest band, 20 boxes per image."""
    image = v1.placeholder(tf.uint8, (None, None, None, 3), name="image_tensor")
    cells = tf.nn.avg_pool2d(tf.cast(image, tf.float32), 8, 8, "VALID")  # (n, rows, cols, 3)
    shape = tf.shape(cells)
    flat = tf.reshape(cells, (shape[0], -1, 3))
    scores, places = tf.math.top_k(tf.reduce_max(flat, -1) / 255.0, 20)
    strongest = tf.argmax(tf.gather(flat, places, batch_dims=1), -1)
    row = tf.cast(places // shape[2], tf.float32) / tf.cast(shape[1], tf.float32)
    col = tf.cast(places % shape[2], tf.float32) / tf.cast(shape[2], tf.float32)
    # Not the cell itself: a height and a width that differ, so that their order counts.
    high, wide = 6.5 / (8.0 * tf.cast(shape[1], tf.float32)), 3.25 / (8.0 * tf.cast(shape[2], tf.float32))
    tf.identity(tf.stack([row, col, row + high, col + wide], -1), name="detection_boxes")
    tf.identity(scores, name="detection_scores")
    tf.identity(tf.cast(strongest + 1, tf.float32), name="detection_classes")


def segmenter() -> None:
    """Two convolutions, one image at a time, as DeepLab is exported."""
    generator = np.random.default_rng(8)
    image = v1.placeholder(tf.uint8, (1, None, None, 3), name="ImageTensor")
    kernel = tf.constant(generator.normal(size=(5, 5, 3, 6)).astype(np.float32))
    hidden = tf.nn.relu(tf.nn.conv2d(tf.cast(image, tf.float32) / 255.0, kernel, 1, "SAME"))
    last = tf.constant(generator.normal(size=(3, 3, 6, 4)).astype(np.float32))
    scores = tf.nn.conv2d(hidden, last, 1, "SAME")
    tf.identity(tf.argmax(scores, -1), name="SemanticPredictions")


def classifier() -> Any:
    """Three classes, any size: mostly the strongest band."""
    generator = np.random.default_rng(3)
    convolution = keras.layers.Conv2D(3, 5, activation="relu")
    dense = keras.layers.Dense(3, activation="softmax")
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Rescaling(1 / 255),
            convolution,
            keras.layers.GlobalAveragePooling2D(),
            dense,
        ]
    )
    convolution.set_weights([generator.normal(0, 0.01, (5, 5, 3, 3)) + np.eye(3) / 25, np.zeros(3)])
    dense.set_weights([generator.normal(0, 0.5, (3, 3)) + 20 * np.eye(3), np.zeros(3)])
    return model


def main(folder: Path) -> None:
    """All models and their answers."""
    tiles = np.load(folder / "tiles.npz")
    answers: dict[str, Any] = {}

    data = frozen(folder / "detector", detector)
    names = ["detection_boxes:0", "detection_scores:0", "detection_classes:0"]
    found = asked(data, "image_tensor:0", names, tiles["tile"].transpose(1, 2, 0)[None])
    answers.update(zip(("boxes", "scores", "classes"), found, strict=True))

    data = frozen(folder / "segmenter", segmenter)
    for name in ("tile", "scene"):
        image = tiles[name].transpose(1, 2, 0)[None]
        (answers[f"{name}_classes"],) = asked(data, "ImageTensor:0", ["SemanticPredictions:0"], image)

    (folder / "classifier").mkdir()
    model = classifier()
    model.save(folder / "classifier" / "model.h5")
    model.save(folder / "classifier" / "model.keras")
    for name in ("squares", "oblongs"):
        images = tiles[name].transpose(0, 2, 3, 1).astype(np.float32)
        # TensorFlow's own way to keep the shape and fill with 0.
        resized = tf.image.resize_with_pad(images, 64, 64, antialias=images.shape[1] > 64)
        answers[name] = model.predict(resized, verbose=0)

    (folder / "masks" / "mrcnn").mkdir(parents=True)
    (folder / "masks" / "mrcnn" / "network.py").write_text(MATTERPORT_DOUBLE)
    with h5py.File(folder / "masks" / "model.h5", "w") as file:
        file["level"] = 180.0
    sys.path.insert(0, str(folder / "masks"))
    network = importlib.import_module("mrcnn.network")
    network.model.load_weights(str(folder / "masks" / "model.h5"), by_name=True)
    (answer,) = network.model.detect([tiles["tile"].transpose(1, 2, 0)])
    answers.update({f"mask_{name}": value for name, value in answer.items()})
    np.savez(folder / "answers.npz", **answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
