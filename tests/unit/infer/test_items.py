"""When a result's imagery was taken."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from tasks.infer.items import _acquired


def test_one_date_of_all_rasters_is_the_items() -> None:
    assert _acquired(["2024-07-01T10:00:00", "2024-07-01T10:00:00"]) == datetime(2024, 7, 1, 10, tzinfo=UTC)
    east = timezone(timedelta(hours=2))
    assert _acquired(["2024-07-01T10:00:00+02:00"]) == datetime(2024, 7, 1, 10, tzinfo=east)
    assert _acquired(["2024-07-01T10:00:00", "2024-08-01T10:00:00"]) is None
    assert _acquired(["2024-07-01T10:00:00", None]) is None
    assert _acquired([None]) is None
