"""A frozen TensorFlow graph, run through the interface of TensorFlow 1, which every later one keeps."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from chipline_builtin import Definition, as_taken, channels_last


class FrozenGraph:
    """A graph and its session.

    Args:
        definition: names the ``.pb``; PerProcessGPUMemoryFraction limits what a GPU gives.
    """

    def __init__(self, definition: Definition) -> None:
        import tensorflow.compat.v1 as tf

        graph = tf.Graph()
        with graph.as_default(), open(definition.weights, "rb") as file:  # noqa: PTH123
            description = tf.GraphDef()
            description.ParseFromString(file.read())
            tf.import_graph_def(description, name="")
        options = tf.ConfigProto(allow_soft_placement=True)
        fraction = definition.values.get("PerProcessGPUMemoryFraction")
        if fraction is not None:
            options.gpu_options.per_process_gpu_memory_fraction = float(fraction)
        else:
            options.gpu_options.allow_growth = True
        # The host's own limit of threads, which TensorFlow does not read by itself.
        threads = os.environ.get("OMP_NUM_THREADS", "")
        if threads.isdigit():
            options.intra_op_parallelism_threads = int(threads)
            options.inter_op_parallelism_threads = 1
        self.graph = graph
        self.session = tf.Session(graph=graph, config=options)

    def run(self, taken: str, given: list[str], chips: np.ndarray) -> list[np.ndarray]:
        """The tensors ``given`` for chips (n, bands, rows, cols) put into ``taken``; first axis n.

        Graphs that were exported for one image at a time get one at a time.
        """
        tensor: Any = self.graph.get_tensor_by_name(taken)
        chips = channels_last(as_taken(chips, tensor.dtype.as_numpy_dtype))
        shape = tensor.shape
        alone = (
            shape.rank is not None and shape[0] is not None and int(getattr(shape[0], "value", shape[0])) == 1
        )
        step = 1 if alone else len(chips)
        answers = [
            self.session.run(given, {taken: chips[start : start + step]})
            for start in range(0, len(chips), step)
        ]
        return [np.concatenate(parts) for parts in zip(*answers)]  # noqa: B905 - Python 3.9
