"""When a result's imagery was taken."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from tasks.infer.items import _acquired


def test_the_dates_of_all_rasters_are_the_items() -> None:
    day, later = datetime(2024, 7, 1, 10, tzinfo=UTC), datetime(2024, 8, 1, 10, tzinfo=UTC)
    assert _acquired(["2024-07-01T10:00:00", "2024-07-01T10:00:00"]) == (day, day)
    east = datetime(2024, 7, 1, 10, tzinfo=timezone(timedelta(hours=2)))
    assert _acquired(["2024-07-01T10:00:00+02:00"]) == (east, east)
    assert _acquired(["2024-08-01T10:00:00", "2024-07-01T10:00:00"]) == (day, later)
    assert _acquired(["2024-07-01T10:00:00", None]) is None
    assert _acquired([None]) is None
    assert _acquired([]) is None
