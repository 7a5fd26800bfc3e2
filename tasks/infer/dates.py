"""When imagery was taken, as its files say."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from tasks.imagery.raster import open_raster, raster_environment

_AT_ONCE = 16
_FORMS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y:%m:%d %H:%M:%S", "%Y-%m-%d")


def acquired(uris: Iterable[str]) -> dict[str, str]:
    """ISO 8601 times by URI, of the rasters that state one.

    That is GDAL's ``ACQUISITIONDATETIME`` (satellite metadata), else ``TIFFTAG_DATETIME``, which cameras set.

    Raises:
        RasterError, NotFoundError: a raster cannot be opened.
    """
    wanted = sorted(set(uris))
    if not wanted:
        return {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(wanted))) as pool:
        found = zip(wanted, pool.map(_acquired, wanted), strict=True)
        return {uri: time for uri, time in found if time is not None}


def _acquired(uri: str) -> str | None:
    with raster_environment(uri), open_raster(uri) as dataset:
        stated = [
            dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME"),
            dataset.tags().get("TIFFTAG_DATETIME"),
        ]
    return next((time for text in stated if text and (time := iso_time(text))), None)


def iso_time(text: str) -> str | None:
    """The time in ISO 8601; None where it cannot be read."""
    plain = text.strip().removesuffix("Z").split(".")[0]
    for form in _FORMS:
        try:
            return datetime.strptime(plain, form).isoformat()
        except ValueError:
            continue
    return None
