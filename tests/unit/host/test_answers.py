"""An answer is believed only as far as the memory file holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tasks.host.answers import AnswerError, Expected, read_answer
from tasks.host.ring import Ring


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring(1)
    yield ring
    ring.close()


def _expected(operation: str = "updatePixels", scores: int = 0) -> Expected:
    return Expected(operation, (2, 3, 4, 5), (4, 5), scores, 10_000)


def _put(ring: Ring, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    os.pwrite(ring.descriptors[0][1], array.tobytes(), 0)
    return {"kind": "array", "shape": list(array.shape), "dtype": array.dtype.str, "bytes": array.nbytes}


def test_arrays_written_to_the_ring_do_not_overlap(ring: Ring) -> None:
    arrays: list[np.ndarray[Any, Any]] = [
        np.arange(7, dtype=np.uint8),
        np.arange(12, dtype=np.float64).reshape(3, 4)[:, ::2],
    ]
    described = ring.write(0, arrays)
    for array, place in zip(arrays, described, strict=True):
        data = os.pread(ring.descriptors[0][0], array.nbytes, place["offset"])
        np.testing.assert_array_equal(
            np.frombuffer(data, place["dtype"]).reshape(place["shape"]), np.ascontiguousarray(array)
        )


def test_result_is_a_copy_of_the_file(ring: Ring) -> None:
    array = np.arange(20, dtype=np.int32).reshape(1, 4, 5)
    result = read_answer(_put(ring, array), _expected(), ring, 0)
    os.pwrite(ring.descriptors[0][1], bytes(80), 0)
    np.testing.assert_array_equal(np.asarray(result), array)


@pytest.mark.parametrize(
    "changed",
    [
        {"bytes": 81},
        {"bytes": -1},
        {"bytes": 10_001},
        {"bytes": "80"},
        {"bytes": 80_000_000_000, "shape": [1, 100_000, 200_000]},
        {"shape": [1, 5, 4]},
        {"shape": [20]},
        {"shape": [1, 4, 5, 1]},
        {"shape": [-1, -4, 5]},
        {"shape": None},
        {"dtype": "|O"},
        {"dtype": "no such"},
        {"dtype": "|V4"},
        {"dtype": "<c8", "bytes": 160},
        {"kind": "json"},
    ],
)
def test_answer_that_does_not_fit_is_refused(ring: Ring, changed: dict[str, Any]) -> None:
    frame = _put(ring, np.zeros((1, 4, 5), np.int32))
    with pytest.raises(AnswerError):
        read_answer({**frame, **changed}, _expected(), ring, 0)


def test_file_that_was_made_shorter_is_refused(ring: Ring) -> None:
    frame = _put(ring, np.zeros((1, 4, 5), np.int32))
    os.ftruncate(ring.descriptors[0][1], 79)
    with pytest.raises(AnswerError, match="shorter"):
        read_answer(frame, _expected(), ring, 0)
    with pytest.raises(AnswerError, match="shorter"):
        read_answer({"kind": "json", "bytes": 80}, _expected("vectorize"), ring, 0)


def test_scores_have_the_batch_and_the_classes(ring: Ring) -> None:
    scores = np.ones((2, 3, 4, 5), np.float16)
    result = read_answer(_put(ring, scores), _expected("predict_scores", 3), ring, 0)
    assert np.asarray(result).dtype == np.float32
    for wrong in (np.ones((1, 3, 4, 5), "f4"), np.ones((2, 2, 4, 5), "f4"), np.ones((2, 3, 4, 5), "i4")):
        with pytest.raises(AnswerError):
            read_answer(_put(ring, wrong), _expected("predict_scores", 3), ring, 0)
