"""Time series in a plan: which rasters belong to which date, and one grid for all dates.

The dates share the target grid of the whole collection, so that a pixel of one lies on a pixel of the other
and areas can be compared; each has its own region, the part of the grid that its rasters cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tasks.errors import BadInputError
from tasks.imagery import RasterInfo, Window
from tasks.imagery.identity import unsigned
from tasks.infer.operators import PixelFormat
from tasks.infer.parameters import InferenceTool
from tasks.infer.parameters_series import ObjectSeriesParameters, PixelSeriesParameters, SeriesParameters
from tasks.infer.planned import PlannedGrid, output_name

_LETTERS = {"BY_DATE": 10, "BY_MONTH": 7, "BY_YEAR": 4}
"""How much of an ISO 8601 time names a date, a month, a year."""

LARGEST_CODED_CLASS = 999
_NAMED_AT_MOST = 3


def by_date(parameters: InferenceTool) -> bool:
    """Whether each date gets a result of its own."""
    return isinstance(parameters, SeriesParameters) and parameters.time_series != "NONE"


def asks_for_dates(parameters: InferenceTool) -> bool:
    """Whether files or their names have to be asked for dates before anything is planned."""
    return by_date(parameters) or getattr(parameters, "date_in_name", None) is not None


def groups_by_date(parameters: InferenceTool, rasters: Sequence[RasterInfo]) -> list[tuple[str, list[int]]]:
    """Dates from the first to the last, each with the positions of its rasters in the collection's order.

    Raises:
        BadInputError: rasters without a date.
    """
    assert isinstance(parameters, SeriesParameters)
    undated = [unsigned(info.uri) for info in rasters if info.acquired is None]
    if undated:
        named = ", ".join(undated[:_NAMED_AT_MOST]) + (" …" if len(undated) > _NAMED_AT_MOST else "")
        raise BadInputError(
            f"{len(undated)} of {len(rasters)} rasters have no date, which time_series needs: {named}.",
            "Name them by STAC items with a datetime, say where the date stands in their names "
            "(date_in_name, such as %Y%m%d), or write it into the files "
            "(gdal_edit.py -mo ACQUISITIONDATE=2024-07-01 FILE).",
        )
    groups: dict[str, list[int]] = {}
    for index, info in enumerate(rasters):
        groups.setdefault((info.acquired or "")[: _LETTERS[parameters.time_series]], []).append(index)
    return sorted(groups.items())


def name_of_date(parameters: InferenceTool, date: str) -> str:
    """Stem of the files of one date."""
    return f"{output_name(parameters.output)}_{date}"


def covered(footprints: Sequence[Window]) -> Window:
    """The window around all footprints; empty without any."""
    if not footprints:
        return Window(0, 0, 0, 0)
    row, col = min(one.row for one in footprints), min(one.col for one in footprints)
    rows, cols = max(one.row_stop for one in footprints) - row, max(one.col_stop for one in footprints) - col
    return Window(row, col, rows, cols)


def series_finishing(parameters: InferenceTool) -> dict[str, Any]:
    """What finish needs to know, and what belongs into the run key; nothing without dates."""
    if not isinstance(parameters, SeriesParameters):
        return {}
    named = {} if parameters.date_in_name is None else {"date_in_name": parameters.date_in_name}
    if parameters.time_series == "NONE":
        return named
    wanted: dict[str, Any] = {"by": parameters.time_series}
    if isinstance(parameters, PixelSeriesParameters):
        wanted["change_rasters"] = parameters.change_rasters
    if isinstance(parameters, ObjectSeriesParameters):
        wanted["min_iou"] = parameters.series_min_iou
    return {**named, "series": wanted}


def check_series(
    parameters: InferenceTool, package: str, form: PixelFormat, class_values: Sequence[int]
) -> None:
    """Refuse what no summary of change can be made of.

    Args:
        parameters: the tool's parameters.
        package: its name.
        form: of the output raster.
        class_values: of the package.

    Raises:
        BadInputError: values instead of classes, or classes that a change raster cannot hold.
    """
    if not by_date(parameters):
        return
    if form.of_values:
        raise BadInputError(
            f"The function of {package} gives values, not classes, and a series compares classes.",
            "Set time_series to NONE and run each date by itself.",
        )
    wanted = isinstance(parameters, PixelSeriesParameters) and parameters.change_rasters
    if wanted and not all(0 <= value <= LARGEST_CODED_CLASS for value in class_values):
        raise BadInputError(
            f"change_rasters hold classes from 0 to {LARGEST_CODED_CLASS}, and {package} has others.",
            "Leave change_rasters off: the tables of areas and transitions take any class.",
        )


def series_remarks(
    parameters: InferenceTool, rasters: Sequence[RasterInfo], grids: Sequence[PlannedGrid]
) -> list[str]:
    """What a person should know of a series; ``grids``: one for each date that is computed."""
    if not by_date(parameters):
        return []
    dates = [planned.date for planned in grids]
    left_out = [date for date, _ in groups_by_date(parameters, rasters) if date not in dates]
    said = []
    if left_out:
        said.append(f"No imagery of {', '.join(left_out)} lies in the extent or the mask: left out.")
    if len(dates) == 1:
        said.append(f"All imagery is of {dates[0]}: there is nothing to compare it with.")
    for first, second in pairwise(grids):
        if Window(*first.region).intersection(Window(*second.region)).is_empty:
            said.append(f"{first.date} and {second.date} share no ground: between them nothing is compared.")
    return said
