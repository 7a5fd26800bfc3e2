"""Objects on their way from tiles to a layer: a table of columns in grid pixels, and its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

_SCHEMA = pa.schema(
    [
        ("tile_row", pa.int32()),
        ("tile_col", pa.int32()),
        ("class_name", pa.string()),
        ("confidence", pa.float64()),
        ("owned", pa.bool_()),
        ("at_border", pa.bool_()),
        ("cut", pa.bool_()),
        ("attributes", pa.string()),
        ("geometry", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Objects:
    """Columns of equal length.

    Attributes:
        tile_row, tile_col: the tile that saw the object, int32.
        class_name: str, as the function named it.
        confidence: float64, on the function's own scale.
        owned: whether the tile's inner part holds the object's centroid.
        at_border: whether another tile may report the same object, see ``tasks.infer.reconcile``.
        cut: whether the object touches the edge of what its tile could see: it is larger than the halo.
        attributes: the function's further attributes as JSON text.
        geometry: shapely polygons in grid pixels, x = column, y = row, (0, 0) the grid's first corner.
    """

    tile_row: NDArray[np.int32]
    tile_col: NDArray[np.int32]
    class_name: NDArray[np.object_]
    confidence: NDArray[np.float64]
    owned: NDArray[np.bool_]
    at_border: NDArray[np.bool_]
    cut: NDArray[np.bool_]
    attributes: NDArray[np.object_]
    geometry: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.geometry)

    def take(self, which: NDArray[Any]) -> Objects:
        """The rows that a boolean mask or an array of numbers selects."""
        return Objects(**{column.name: getattr(self, column.name)[which] for column in fields(self)})

    def in_order(self) -> Objects:
        """Sorted by tile, then by geometry (bounds), class and confidence: one order for one content."""
        bounds = shapely.bounds(self.geometry).reshape(-1, 4)
        keys = (
            self.confidence,
            self.class_name.astype(str),
            *(bounds[:, column] for column in (2, 3, 0, 1)),
            self.tile_col,
            self.tile_row,
        )
        return self.take(np.lexsort(keys)) if len(self) else self

    def to_bytes(self) -> bytes:
        """An Arrow stream, compressed; equal objects give equal bytes."""
        columns = {column.name: getattr(self, column.name) for column in fields(self)}
        columns["geometry"] = shapely.to_wkb(self.geometry)
        arrays = [pa.array(columns[item.name], type=item.type) for item in _SCHEMA]
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, _SCHEMA, options=options) as writer:
            writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
        return bytes(sink.getvalue())

    @staticmethod
    def from_bytes(data: bytes) -> Objects:
        """What :meth:`to_bytes` wrote."""
        with pa.ipc.open_stream(pa.BufferReader(data)) as reader:
            table = reader.read_all()
        columns = {name: table[name].to_numpy(zero_copy_only=False) for name in _SCHEMA.names}
        columns["class_name"] = columns["class_name"].astype(object)
        columns["attributes"] = columns["attributes"].astype(object)
        columns["geometry"] = shapely.from_wkb(columns["geometry"].astype(object))
        return Objects(**columns)

    @staticmethod
    def joined(parts: Sequence[Objects]) -> Objects:
        """All rows of several tables, in their order."""
        if not parts:
            return no_objects()
        return Objects(
            **{
                column.name: np.concatenate([getattr(part, column.name) for part in parts])
                for column in fields(Objects)
            }
        )


def no_objects() -> Objects:
    """An empty table."""
    integer, boolean, anything = np.empty(0, np.int32), np.empty(0, np.bool_), np.empty(0, object)
    return Objects(
        integer, integer, anything, np.empty(0), boolean, boolean, boolean, anything, anything.copy()
    )
