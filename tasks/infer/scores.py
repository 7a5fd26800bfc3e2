"""Scores of classes on their way to class values: chips, weights, ranks, and the bytes they are kept as.

Everything is added up in whole numbers, so that the outcome does not depend on the order of the additions:
probabilities in 255ths, weights in sixteenths per axis. The largest sum, 255 x 16 x 16, fits 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks.errors import HostError
from tasks.host import Operation
from tasks.infer.shards import TileGeometry

# A chip's weight along one axis; the two chips that share a pixel have this much together.
WEIGHT = 16
# Rows that are ranked at a time: the work needs several times their memory.
_ROWS_AT_ONCE = 64

Planes = NDArray[np.uint16]
"""(scores + 2, rows, cols): weighted sums per score, then the weights' sum, then 1 where imagery is."""


class ScoreLayout(BaseModel):
    """What a function says of its scores.

    Attributes:
        values: class value of each score, in the function's order.
        hidden: values that the function never gives (its background is switched off).
        chip_rows, chip_cols: what it takes at a time, with the padding; whole chips fill a super-tile.
        batch: chips per call.
    """

    model_config = ConfigDict(frozen=True)

    values: list[int]
    hidden: list[int]
    chip_rows: int
    chip_cols: int
    batch: int


class Scoring(BaseModel):
    """How the engine makes classes of scores.

    Attributes:
        layout: of the function.
        margin: pixels on both sides of a chip's border within which neighbours are mixed; 0 trims.
        kept: number of top classes whose probabilities are kept; 0 keeps none.
    """

    model_config = ConfigDict(frozen=True)

    layout: ScoreLayout
    margin: int
    kept: int

    @property
    def chosen(self) -> list[int]:
        """Positions of the scores that may win."""
        return [
            number
            for number, value in enumerate(self.layout.values)
            if value not in self.layout.hidden or len(self.layout.values) == 1
        ]

    @property
    def values(self) -> NDArray[np.int64]:
        """Class value of each score that may win."""
        return np.array([self.layout.values[number] for number in self.chosen], np.int64)


def blend_margin(geometry: TileGeometry, layout: ScoreLayout) -> int:
    """Half the padding: every pixel that is mixed in has the other half of it as context.

    At most half a chip's inner part, so that no more than two chips share a pixel along an axis.
    """
    inner = min(layout.chip_rows, layout.chip_cols) - 2 * geometry.padding
    return min(geometry.padding // 2, inner // 2)


def weights(inner: int, margin: int) -> NDArray[np.uint16]:
    """Weights of one chip along one axis, from ``margin`` before its inner part to ``margin`` after it.

    A raised cosine in sixteenths; with the neighbour's it makes 16 everywhere.  # (inner + 2 margin,)
    """
    result = np.full(inner + 2 * margin, WEIGHT, np.uint16)
    if margin:
        along = (np.arange(2 * margin) + 0.5) / (2 * margin)
        ramp = np.floor(WEIGHT * np.sin(along * np.pi / 2) ** 2 + 0.5).astype(np.uint16)
        ramp[margin:] = WEIGHT - ramp[:margin][::-1]
        result[: 2 * margin] = ramp
        result[inner:] = ramp[::-1]
    return result


def check_probabilities(scores: NDArray[np.float32]) -> None:
    """Refuse what is no probability.

    Raises:
        HostError: values outside of 0 to 1, or no numbers.
    """
    lowest, highest = float(scores.min(initial=0.0)), float(scores.max(initial=0.0))
    # A NaN makes both comparisons false.
    if not (lowest >= -1e-3 and highest <= 1 + 1e-3):
        raise HostError(
            f"predict_scores returned values from {lowest:g} to {highest:g}.",
            "Mend the function: it returns probabilities from 0 to 1 (a softmax); "
            "or use stitching TRIM without keep_probabilities.",
        )


def quantised(scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Probabilities from 0 to 1 in 255ths.

    Raises:
        HostError: something else than probabilities.
    """
    check_probabilities(scores)
    whole: NDArray[np.uint8] = np.rint(np.clip(scores, 0, 1) * 255).astype(np.uint8)
    return whole


def ranked(scores: NDArray[Any], count: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The ``count`` largest scores of each pixel, in order; of equal ones the first.

    Args:
        scores: (scores, rows, cols) of a signed type, all at least 0; used up.
        count: at most the number of scores.

    Returns:
        Positions, uint8 (count, rows, cols), and the scores there, in the type of ``scores``.
    """
    places = np.zeros((count, *scores.shape[1:]), np.uint8)
    found = np.empty((count, *scores.shape[1:]), scores.dtype)
    for rank in range(count):
        best, place = scores[0].copy(), places[rank]
        for number in range(1, len(scores)):
            better = scores[number] > best
            np.copyto(best, scores[number], where=better)
            place[better] = number
        found[rank] = best
        if rank + 1 < count:
            np.put_along_axis(scores, place[None].astype(np.intp), -1, axis=0)
    return places, found


@dataclass(frozen=True)
class Decided:
    """Classes of a rectangle.

    Attributes:
        classes: (rows, cols), class values, nodata where no imagery is.
        top: (kept, rows, cols), class values by rank, nodata where no imagery is.
        probability: (kept, rows, cols) uint8, 255 is certainty; of the first rank 0 only where no imagery is.
    """

    classes: NDArray[Any]
    top: NDArray[Any]
    probability: NDArray[np.uint8]

    @staticmethod
    def empty(shape: tuple[int, int], kept: int, dtype: str, nodata: float) -> Decided:
        """Nothing but nodata."""
        return Decided(
            np.full(shape, nodata, dtype),
            np.full((kept, *shape), nodata, dtype),
            np.zeros((kept, *shape), np.uint8),
        )

    def put(
        self, scoring: Scoring, scores: NDArray[Any], whole: NDArray[Any], where: Any, valid: Any
    ) -> None:
        """Decide a rectangle.

        Args:
            scoring: values and number of ranks.
            scores: (scores, rows, cols), used up; the largest wins.
            whole: (rows, cols), what a certain class would have.
            where: the rectangle in these arrays.
            valid: bool (rows, cols); the rest stays as it is.
        """
        places, found = ranked(scores, max(1, scoring.kept))
        values = scoring.values[places].astype(self.classes.dtype)
        self.classes[where][valid] = values[0][valid]
        for rank in range(scoring.kept):
            share = np.rint(found[rank] * (255 / np.maximum(whole, 1e-9))).astype(np.uint8)
            if rank == 0:
                np.maximum(share, 1, out=share)  # 0 says that there is no imagery
            self.top[rank][where][valid] = values[rank][valid]
            self.probability[rank][where][valid] = share[valid]


def decide(planes: Planes, scoring: Scoring, dtype: str, nodata: float) -> Decided:
    """Classes of complete sums."""
    rows, cols = planes.shape[1:]
    result = Decided.empty((rows, cols), scoring.kept, dtype, nodata)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        block = planes[:, part]
        result.put(
            scoring,
            block[:-2].astype(np.int32),
            block[-2].astype(np.float64) * 255,
            (part, slice(None)),
            block[-1] != 0,
        )
    return result


def chips_of(block: NDArray[Any], geometry: TileGeometry, layout: ScoreLayout) -> NDArray[Any]:
    """A super-tile with its padding as a batch of chips, row by row.  # (chips, bands, rows, cols)"""
    pad = geometry.padding
    step_rows, step_cols = layout.chip_rows - 2 * pad, layout.chip_cols - 2 * pad
    return np.stack(
        [
            block[:, row : row + layout.chip_rows, col : col + layout.chip_cols]
            for row in range(0, geometry.rows, step_rows)
            for col in range(0, geometry.cols, step_cols)
        ]
    )


class _Host(Protocol):
    def submit(
        self,
        operation: Operation,
        pixels: NDArray[Any],
        mask: NDArray[np.uint8] | None = None,
        *,
        tlc: tuple[float, float],
        shape: tuple[int, int],
        props: Mapping[str, Any],
    ) -> int: ...

    def result(self, ticket: int) -> Any: ...


@dataclass(frozen=True)
class ChipHost:
    """A host that takes super-tiles, as the engine gives them, and asks for the scores of their chips.

    The chips of one super-tile are one batch, always of the same size: what a network gives may depend on
    its batch in the last digits.

    Attributes:
        at_once: chips per call, where memory is too small for the layout's batch (``tasks.infer.batches``).
    """

    host: _Host
    geometry: TileGeometry
    layout: ScoreLayout
    at_once: int | None = None
    _waiting: dict[int, list[int]] = field(default_factory=dict)

    def submit(
        self,
        operation: Operation,
        pixels: NDArray[Any],
        mask: NDArray[np.uint8],
        *,
        tlc: tuple[float, float],
        shape: tuple[int, int],
        props: Mapping[str, Any],
    ) -> int:
        """Hand over one super-tile; what is not imagery is 0."""
        usable = np.isfinite(pixels) & (mask != 0) if pixels.dtype.kind == "f" else mask != 0
        chips = chips_of(np.where(usable, pixels, pixels.dtype.type(0)), self.geometry, self.layout)
        size = self.at_once or len(chips)
        tickets = [
            self.host.submit(operation, chips[start : start + size], tlc=tlc, shape=shape, props=props)
            for start in range(0, len(chips), size)
        ]
        self._waiting[tickets[0]] = tickets
        return tickets[0]

    def result(self, ticket: int) -> Any:
        """Scores of the chips, float32 (chips, scores, rows, cols)."""
        scores = [self.host.result(one) for one in self._waiting.pop(ticket)]
        return scores[0] if len(scores) == 1 else np.concatenate(scores)


_ARRAYS = pa.schema(
    [("name", pa.string()), ("dtype", pa.string()), ("shape", pa.list_(pa.int64())), ("data", pa.binary())]
)


def arrays_to_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Named arrays as a compressed Arrow stream; equal arrays give equal bytes."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, _ARRAYS, options=options) as writer:
        for name, array in arrays.items():
            columns = [[name], [array.dtype.str], [list(array.shape)], [array.tobytes()]]
            typed = [pa.array(column, type=item.type) for column, item in zip(columns, _ARRAYS, strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays(typed, schema=_ARRAYS))
    return bytes(sink.getvalue())


def arrays_from_bytes(data: bytes, wanted: str = "") -> dict[str, NDArray[Any]]:
    """What :func:`arrays_to_bytes` wrote; only the names that start with ``wanted``."""
    arrays = {}
    with pa.ipc.open_stream(pa.BufferReader(data)) as reader:
        for batch in reader:
            name = batch["name"][0].as_py()
            if name.startswith(wanted):
                flat = np.frombuffer(batch["data"][0].as_buffer(), dtype=batch["dtype"][0].as_py())
                arrays[name] = flat.reshape(batch["shape"][0].as_py())
    return arrays
