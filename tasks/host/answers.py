"""A block's answer, checked before anything is allocated for it: it comes from foreign code."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import HostError
from tasks.host.ring import Ring


class AnswerError(ValueError):
    """The answer is not what the operation returns."""


@dataclass(frozen=True)
class Expected:
    """What a block's answer must look like.

    Attributes:
        operation: the method that was called.
        pixels_shape: shape of the pixels handed over.
        inner: (rows, cols) of the inner block.
        number_of_scores: scores per pixel, 0 when unknown.
        limit: largest answer in bytes.
    """

    operation: str
    pixels_shape: tuple[int, ...]
    inner: tuple[int, int]
    number_of_scores: int
    limit: int


@dataclass
class Call:
    """One block on its way."""

    slot: int
    expected: Expected
    block: str
    done: threading.Event = field(default_factory=threading.Event)
    value: npt.NDArray[Any] | bytes | None = None
    error: HostError | None = None


def read_answer(frame: dict[str, Any], expected: Expected, ring: Ring, slot: int) -> npt.NDArray[Any] | bytes:
    """The array or the text of a ``result`` frame.

    Raises:
        AnswerError: wrong kind, shape, dtype or size.
    """
    size = frame.get("bytes")
    if not isinstance(size, int) or not 0 <= size <= expected.limit:
        raise AnswerError(f"an answer of {size!r} bytes, where {expected.limit} are allowed")
    if expected.operation == "vectorize":
        if frame.get("kind") != "json":
            raise AnswerError("vectorize gave no text")
        text = ring.read_bytes(slot, size)
        if text is None:
            raise AnswerError("the answer is shorter than it was said to be")
        return text
    shape, dtype = _array_type(frame)
    if prod(shape) * dtype.itemsize != size:
        raise AnswerError(f"{size} bytes are no array {shape} of {dtype}")
    if expected.operation == "predict_scores":
        return _scores(shape, dtype, expected, ring, slot)
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or shape[1:] != expected.inner or shape[0] < 1:
        raise AnswerError(
            f"output_pixels has the shape {shape}, where (bands, {expected.inner[0]}, {expected.inner[1]}) "
            "was asked for (the padding has to be cut off)"
        )
    return _read(ring, slot, shape, dtype)


def _array_type(frame: dict[str, Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    given = frame.get("shape")
    if frame.get("kind") != "array" or not isinstance(given, list) or len(given) > 6:
        raise AnswerError("no array")
    if not all(isinstance(length, int) and length >= 0 for length in given):
        raise AnswerError(f"an array of the shape {given!r:.60}")
    name = str(frame.get("dtype"))
    try:
        dtype = np.dtype(name)
    except TypeError as error:
        raise AnswerError(f"an array of the unknown dtype {name:.20}") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise AnswerError(f"an array of dtype {dtype}, where a number of at most 8 bytes was expected")
    return tuple(given), dtype


def _scores(
    shape: tuple[int, ...], dtype: np.dtype[Any], expected: Expected, ring: Ring, slot: int
) -> npt.NDArray[Any]:
    if dtype.kind != "f":
        raise AnswerError(f"predict_scores gave {dtype}, not floating point numbers")
    classes = expected.number_of_scores
    if len(shape) != 4 or shape[0] != expected.pixels_shape[0] or (classes and shape[1] != classes):
        raise AnswerError(
            f"predict_scores gave the shape {shape}, where ({expected.pixels_shape[0]}, "
            f"{classes or 'classes'}, rows, cols) was expected"
        )
    scores = _read(ring, slot, shape, dtype)
    return scores.astype(np.float32, copy=False)


def _read(ring: Ring, slot: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    array = ring.read_array(slot, shape, dtype)
    if array is None:
        raise AnswerError("the answer is shorter than it was said to be")
    return array
