"""When imagery was taken: what its files, their names, or the documents that list them say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from tasks.errors import BadInputError
from tasks.imagery import RasterInfo
from tasks.imagery.identity import unsigned
from tasks.imagery.raster import open_raster, raster_environment
from tasks.infer.parameters_series import check_date_in_name

_AT_ONCE = 16
_FORMS = ("%Y:%m:%d %H:%M:%S", "%Y:%m:%d", "%Y/%m/%d", "%Y/%m/%d %H:%M:%S")
# Where files say it, best first: GDAL's name for what satellites say, the same in a file's own tags, cameras.
_TAGS = (
    ("IMAGERY", "ACQUISITIONDATETIME"),
    (None, "ACQUISITIONDATETIME"),
    (None, "ACQUISITIONDATE"),
    (None, "EXIF_DateTimeOriginal"),
    ("EXIF", "EXIF_DateTimeOriginal"),
    (None, "TIFFTAG_DATETIME"),
)
_DIGITS = {"Y": 4, "m": 2, "d": 2, "j": 3, "H": 2, "M": 2, "S": 2}
# No image is older than the first aerial photographs; other numbers of four digits are no years.
_YEARS = range(1850, 2101)


def acquired(uris: Iterable[str]) -> dict[str, str]:
    """ISO 8601 times by URI, of the rasters that state one.

    That is GDAL's ``ACQUISITIONDATETIME`` (satellite metadata), else the file's own tags
    ``ACQUISITIONDATETIME``, ``ACQUISITIONDATE``, ``EXIF_DateTimeOriginal`` or ``TIFFTAG_DATETIME``, which
    cameras set. Times with a zone are brought to UTC; none has a zone here.

    Raises:
        RasterError, NotFoundError: a raster cannot be opened.
    """
    wanted = sorted(set(uris))
    if not wanted:
        return {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(wanted))) as pool:
        found = zip(wanted, pool.map(_acquired, wanted), strict=True)
        return {uri: time for uri, time in found if time is not None}


def dated(rasters: Sequence[RasterInfo], date_in_name: str | None) -> list[RasterInfo]:
    """The rasters with the times that are known of them.

    Args:
        rasters: those that a document lists have its times.
        date_in_name: pattern that goes before all else; None: names are not looked at, and files are asked
            where no document says it.

    Raises:
        BadInputError: a name without a date where names have them.
        RasterError, NotFoundError: a raster cannot be opened.
    """
    if date_in_name is not None:
        return [
            info.model_copy(update={"acquired": date_of_name(info.uri, date_in_name)}) for info in rasters
        ]
    found = acquired(info.uri for info in rasters if info.acquired is None)
    return [
        info.model_copy(update={"acquired": found.get(info.uri)}) if info.acquired is None else info
        for info in rasters
    ]


def date_of_name(uri: str, pattern: str) -> str:
    """The time in a file's name, ISO 8601.

    The first place counts that reads like the pattern, is a date that exists, from 1850 to 2100, and has no
    further digit before or behind it. A pattern with a slash is looked for in the whole address.

    Raises:
        BadInputError: there is no such place.
    """
    address = unsigned(uri)
    path = urlsplit(address).path if "://" in address else address
    text = path if "/" in pattern else PurePosixPath(path).name
    form, expression = _as_expression(pattern)
    found = expression.search(text)
    while found is not None:
        try:
            time = datetime.strptime("-".join(found.groups()), form)
        except ValueError:
            time = None
        if time is not None and time.year in _YEARS:
            return time.isoformat()
        found = expression.search(text, found.start() + 1)
    raise BadInputError(
        f"The name of {address} has no date like {pattern!r} (date_in_name).",
        "Mend the pattern, leave out rasters without a date, or leave date_in_name empty, which takes the "
        "dates of items and of files' tags.",
    )


def _as_expression(pattern: str) -> tuple[str, re.Pattern[str]]:
    """The form of the groups, joined with '-', and the expression that finds them."""
    codes = check_date_in_name(pattern)
    parts = re.split("%.", pattern)
    text = re.escape(parts[0])
    for code, literal in zip(codes, parts[1:], strict=True):
        text += f"([0-9]{{{_DIGITS[code]}}})" + re.escape(literal)
    # A date is no part of a longer number.
    before, behind = "" if parts[0] else "(?<![0-9])", "" if parts[-1] else "(?![0-9])"
    return "-".join(f"%{code}" for code in codes), re.compile(before + text + behind)


def _acquired(uri: str) -> str | None:
    with raster_environment(uri), open_raster(uri) as dataset:
        stated = [(dataset.tags(ns=space) if space else dataset.tags()).get(name) for space, name in _TAGS]
    return next((time for text in stated if text and (time := iso_time(text))), None)


def iso_time(text: str) -> str | None:
    """The time in ISO 8601, in UTC and without a zone; None where it cannot be read.

    A text without a zone is taken as it stands.
    """
    plain = text.strip()
    found = (_parsed(plain, form) for form in ("", *_FORMS))
    time = next((one for one in found if one is not None), None)
    if time is None:
        return None
    if time.tzinfo is not None:
        time = time.astimezone(UTC).replace(tzinfo=None)
    return time.isoformat(timespec="seconds")


def _parsed(text: str, form: str) -> datetime | None:
    """The time in a text of this form, or of ISO 8601; None in any other."""
    try:
        return datetime.strptime(text.split(".")[0], form) if form else datetime.fromisoformat(text)
    except ValueError:
        return None
