"""What is told from label rasters, against numpy's slow and simple ways."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.training_data.masks import boxes_of_instances, count_values, numbered


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int64"])
@pytest.mark.parametrize("largest", [3, 200, 100_000])
def test_values_are_counted_and_numbered_without_gaps(dtype: str, largest: int) -> None:
    largest = min(largest, int(np.iinfo(dtype).max))
    random = np.random.default_rng(largest)
    for mask in (
        random.choice(np.array([0, 1, 3, largest]), (20, 30)).astype(dtype),
        np.zeros((4, 5), dtype),
        np.full((4, 5), largest, dtype),
    ):
        values, counts = np.unique(mask[mask > 0], return_counts=True)
        assert count_values(mask) == dict(zip(values.tolist(), counts.tolist(), strict=True))
        made = numbered(mask)
        assert made.dtype == mask.dtype
        for number, value in enumerate(values, start=1):
            np.testing.assert_array_equal(made == number, mask == value)
        np.testing.assert_array_equal(made == 0, mask == 0)


def test_an_object_in_pieces_has_one_box() -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[1, 2] = mask[8, 11] = 5
    mask[4:6, 4:7] = 2
    assert boxes_of_instances({7: mask}) == [(7, 4, 4, 7, 6), (7, 2, 1, 12, 9)]
