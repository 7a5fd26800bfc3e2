"""Parameters of time series: one result per date, and what changed between them.

ArcGIS's tools have none of these; they are Chipline's own, see ``docs/time-series.md``.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from tasks.parameters import ToolParameters

TimeSeries = Literal["NONE", "BY_DATE", "BY_MONTH", "BY_YEAR"]

# What the letters of a pattern must hold, as regular expressions.
_NEEDED = {"BY_YEAR": "Y", "BY_MONTH": "m|j", "BY_DATE": "j|m.*d|d.*m"}


class SeriesParameters(ToolParameters):
    """Whether rasters are taken by date, and where their dates stand."""

    time_series: TimeSeries = Field(
        default="NONE",
        description="BY_DATE, BY_MONTH and BY_YEAR (Chipline's own) give each date (UTC), month or year a "
        "result of its own, a mosaic of its rasters on one grid for all, and a summary of what changed "
        "between them; NONE knows no dates. A raster's date is that of its item or of its file's tags, or "
        "date_in_name",
    )
    date_in_name: str | None = Field(
        default=None,
        description="Where the date stands in the names of the rasters' files, in the codes %Y %m %d %j %H "
        "%M %S, such as %Y%m%d or scene_%Y-%j; with a slash it is looked for in the whole address. The first "
        "place that reads like it counts, before any other date; empty: names are not looked at",
    )

    @model_validator(mode="after")
    def _series_fits(self) -> SeriesParameters:
        codes = None if self.date_in_name is None else check_date_in_name(self.date_in_name)
        if self.time_series == "NONE":
            return self
        if codes is not None and not re.search(_NEEDED[self.time_series], codes):
            raise ValueError(
                f"date_in_name {self.date_in_name!r} says too little for {self.time_series}: a year is %Y, a "
                "month %m, a day %d, or %j counted from the year's first"
            )
        if getattr(self, "processing_mode", "") != "PROCESS_AS_MOSAICKED_IMAGE":
            raise ValueError(
                "time_series computes the rasters of a date together; take PROCESS_AS_MOSAICKED_IMAGE, or "
                "time_series NONE"
            )
        if getattr(self, "use_pixelspace", False):
            raise ValueError("time_series compares places on the map; leave use_pixelspace off")
        return self


def check_date_in_name(pattern: str) -> str:
    """The letters of the codes in a pattern, in their order, such as ``Ymd``.

    Raises:
        ValueError: for a validator of the model to pass on.
    """
    codes = re.findall("%(.?)", pattern)
    unknown = [code for code in codes if code not in tuple("YmdjHMS")]
    if unknown or len(set(codes)) < len(codes) or "Y" not in codes:
        raise ValueError(
            f"date_in_name {pattern!r} is no pattern of a date: it takes %Y and each of %m %d %j %H %M %S at "
            "most once, such as %Y%m%d"
        )
    return "".join(codes)


class PixelSeriesParameters(SeriesParameters):
    """What a series of classified rasters also gives."""

    change_rasters: bool = Field(
        default=False,
        description="With time_series, also write a raster per pair of consecutive dates (and the first and "
        "the last) whose values hold the class before and the class after as decimal digits: where classes "
        "go up to 99, 312 is class 3 that became class 12",
    )


class ObjectSeriesParameters(SeriesParameters):
    """When objects of two dates are one and the same."""

    series_min_iou: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="With time_series, objects of two dates that overlap by at least this much, as "
        "intersection over union, are one object that stayed",
    )
