"""What changed between the dates of a series, as tables: CSV and JSON files, and Markdown for a run's page.

Plain Python, so that a run's page needs nothing else.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

JSON_TYPE, CSV_TYPE = "application/json", "text/csv"
SUMMARY = "_series.json"
"""Ending of the summary's name."""

_SHOWN_CLASSES, _SHOWN_PAIRS = 20, 12


@dataclass
class SeriesTables:
    """The rows of both tables, filled date by date.

    Attributes:
        kind: ``pixels`` or ``objects``; also the name of the column that counts them.
        dates: rows of one date and class: ``date``, ``Class``, the count, ``area_m2``; of pixels also
            ``Classvalue`` and ``share`` of what was seen on that date.
        changes: rows of two dates and two classes: ``from_date``, ``to_date``, ``from_class``, ``to_class``,
            the count, ``area_m2``; of objects also ``change``.
    """

    kind: str
    dates: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self, title: str) -> bytes:
        """Both tables, and per pair of dates the matrix of areas: rows are the classes before, columns those
        after."""
        pairs = [
            {"from": first, "to": second, "classes": names, "area_m2": matrix}
            for first, second in pairs_of(self.changes)
            for names, matrix in [matrix_of(self.changes, first, second)]
        ]
        document = {
            "title": title,
            "kind": self.kind,
            "dates": self.dates,
            "changes": self.changes,
            "matrices": pairs,
        }
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """Rows as CSV (RFC 4180, UTF-8), with a head even where there is no row."""
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def is_summary(output: Mapping[str, Any]) -> bool:
    """Whether this output, as a manifest describes it, is the summary of a series."""
    return str(output["path"]).endswith(SUMMARY) and output.get("content") == "series"


def columns_of(kind: str) -> tuple[list[str], list[str]]:
    """Columns of the table of dates and of that of changes."""
    change = ["change"] if kind == "objects" else []
    dates = ["date", "Classvalue", "Class", kind, "area_m2"]
    if kind == "pixels":
        dates.append("share")
    return dates, ["from_date", "to_date", *change, "from_class", "to_class", kind, "area_m2"]


def pairs_of(changes: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The pairs of dates, in their order."""
    return list(dict.fromkeys((str(row["from_date"]), str(row["to_date"])) for row in changes))


def matrix_of(
    changes: Sequence[Mapping[str, Any]], first: str, second: str
) -> tuple[list[str], list[list[float]]]:
    """Classes of one pair of dates, and the areas in m² that went from one (row) to another (column).

    Objects that appeared or vanished have no class on one side and stand in no cell.
    """
    here = [row for row in changes if (row["from_date"], row["to_date"]) == (first, second)]
    here = [row for row in here if row["from_class"] is not None and row["to_class"] is not None]
    names = list(
        dict.fromkeys([*(str(row["from_class"]) for row in here), *(str(row["to_class"]) for row in here)])
    )
    place = {name: number for number, name in enumerate(names)}
    matrix = [[0.0] * len(names) for _ in names]
    for row in here:
        matrix[place[str(row["from_class"])]][place[str(row["to_class"])]] += float(row["area_m2"])
    return names, matrix


def series_markdown(document: Mapping[str, Any]) -> str:
    """The summary for a run's page: classes by date, and what became of what."""
    kind = str(document["kind"])
    dates = list(dict.fromkeys(str(row["date"]) for row in document["dates"]))
    classes = list(dict.fromkeys(str(row["Class"]) for row in document["dates"]))
    cells = {(str(row["date"]), str(row["Class"])): row for row in document["dates"]}
    unit = "m²" if kind == "pixels" else f"{kind} (m²)"
    lines = [f"### By date, {unit}", "", _row(["class", *dates]), _row(["---", *["---:"] * len(dates)])]
    for name in classes[:_SHOWN_CLASSES]:
        found = [cells.get((date, name)) for date in dates]
        lines.append(_row([name, *(_amount(row, kind) for row in found)]))
    if len(classes) > _SHOWN_CLASSES:
        lines.append(f"\n{len(classes) - _SHOWN_CLASSES} further classes stand in the tables.")
    pairs = pairs_of(document["changes"])
    for first, second in pairs[:_SHOWN_PAIRS]:
        lines += ["", f"### From {first} to {second}", ""]
        lines += _counted(document["changes"], first, second) if kind == "objects" else []
        lines += _matrix(*matrix_of(document["changes"], first, second))
    if len(pairs) > _SHOWN_PAIRS:
        lines.append(f"\n{len(pairs) - _SHOWN_PAIRS} further pairs of dates stand in the tables.")
    return "\n".join(lines)


def _amount(row: Mapping[str, Any] | None, kind: str) -> str:
    if row is None:
        return "0"
    return f"{row['area_m2']:,.1f}" if kind == "pixels" else f"{row['objects']:,} ({row['area_m2']:,.1f})"


def _counted(changes: Sequence[Mapping[str, Any]], first: str, second: str) -> list[str]:
    counts: dict[str, int] = {}
    for row in changes:
        if (row["from_date"], row["to_date"]) == (first, second):
            counts[str(row["change"])] = counts.get(str(row["change"]), 0) + int(row["objects"])
    return [", ".join(f"{name.lower().replace('_', ' ')}: {count:,}" for name, count in counts.items()), ""]


def _matrix(names: Sequence[str], matrix: Sequence[Sequence[float]]) -> list[str]:
    if not names:
        return []
    if len(names) > _SHOWN_CLASSES:
        return [f"{len(names)} classes: the matrix stands in the tables."]
    lines = [_row(["m² from ↓ to →", *names]), _row(["---", *["---:"] * len(names)])]
    return [
        *lines,
        *(_row([name, *(f"{area:,.1f}" for area in row)]) for name, row in zip(names, matrix, strict=True)),
    ]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
