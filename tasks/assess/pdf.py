"""The accuracy report as PDF: the same tables and drawings as the page's."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tasks.assess.drawings import draw_calibration, draw_confusion, draw_curve, new_figure
from tasks.assess.object_accuracy import ObjectAccuracy
from tasks.assess.pixel_accuracy import BACKGROUND
from tasks.assess.report import COUNTS, OBJECT_FIELDS, PIXEL_COUNTS, PIXEL_FIELDS, Row, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = (11.7, 8.3)  # A4 across, inches
_ROWS = 24  # of a table on one page
_CURVES = 6  # on one page


def to_pdf(
    rows: Sequence[Row],
    details: Mapping[str, Any],
    parameters: Mapping[str, Any],
    objects: ObjectAccuracy | None,
    names: Mapping[int, str],
) -> bytes:
    """Tables, precision-recall curves, confusion matrices, calibration; the same inputs, the same bytes."""
    from matplotlib.backends.backend_pdf import PdfPages

    stream = io.BytesIO()
    # No date in the file: the same assessment gives the same bytes.
    told = {"Title": f"Accuracy of {parameters['out_accuracy_table']}", "CreationDate": None}
    with PdfPages(stream, metadata=told) as pages:
        for figure in _pages(rows, details, parameters, objects, names):
            pages.savefig(figure)
    return stream.getvalue()


def _pages(
    rows: Sequence[Row],
    details: Mapping[str, Any],
    parameters: Mapping[str, Any],
    objects: ObjectAccuracy | None,
    names: Mapping[int, str],
) -> Iterator[Figure]:
    level = f"in brackets: {100 * float(parameters['confidence_level']):g} % intervals over blocks of ground"
    title = f"Accuracy of {parameters['out_accuracy_table']}"
    ours = [row for row in rows if row["Kind"] == "objects"]
    for iou in dict.fromkeys(row["Min_IoU"] for row in ours):
        chosen = [row for row in ours if row["Min_IoU"] == iou]
        fields = [name for name in OBJECT_FIELDS if name in chosen[0]]
        yield from _tables(f"{title}: objects, IoU of at least {iou:g}; {level}", chosen, fields, COUNTS)
    if objects is not None:
        yield from _curves(objects, names)
        found = details["objects"]
        yield _confusion(
            "Objects by truth (rows) and detection", [*found["classes"], "background"], objects.confusion
        )
        yield _reliability(found["reliability"], objects.calibration.error)
    ours = [row for row in rows if row["Kind"] == "pixels"]
    if ours:
        yield from _tables(f"{title}: pixels; {level}", ours, PIXEL_FIELDS, PIXEL_COUNTS)
        found = details["pixels"]
        labels = ["background" if v == BACKGROUND else names.get(v, str(v)) for v in found["classes"]]
        yield _confusion("Pixels by truth (rows) and prediction", labels, np.array(found["confusion_matrix"]))
    yield from _parameters(parameters)


def _figure(title: str) -> Figure:
    figure = new_figure(*_PAGE)
    figure.suptitle(title, fontsize=11)
    return figure


def _tables(
    title: str, rows: Sequence[Row], measures: Sequence[str], counts: Sequence[str]
) -> Iterator[Figure]:
    columns = ["Class", *(name.replace("_", " ") for name in (*measures, *counts))]
    lines = [
        [str(row["Class"]), *(shown(row, name) for name in measures), *(f"{row[name]:,}" for name in counts)]
        for row in rows
    ]
    yield from _grid(title, columns, lines)


def _grid(title: str, columns: list[str], lines: list[list[str]]) -> Iterator[Figure]:
    for start in range(0, len(lines), _ROWS):
        figure = _figure(title)
        axes = figure.add_subplot()
        axes.set_axis_off()
        table = axes.table(lines[start : start + _ROWS], colLabels=columns, loc="upper center")
        table.auto_set_font_size(False)
        table.set_fontsize(8)
        table.auto_set_column_width(list(range(len(columns))))
        table.scale(1, 1.3)
        yield figure


def _curves(objects: ObjectAccuracy, names: Mapping[int, str]) -> Iterator[Figure]:
    curves = list(objects.curves.items())
    for start in range(0, len(curves), _CURVES):
        figure = _figure("Precision over recall")
        for place, (value, (precision, recall)) in enumerate(curves[start : start + _CURVES]):
            axes = figure.add_subplot(2, 3, place + 1)
            draw_curve(axes, precision, recall)
            axes.set_title(names.get(value, str(value)), fontsize=9)
        yield figure


def _confusion(title: str, labels: list[str], counts: npt.NDArray[np.int64]) -> Figure:
    figure = _figure(title)
    draw_confusion(figure.add_subplot(), counts, labels)
    return figure


def _reliability(bins: Sequence[Mapping[str, float]], error: float) -> Figure:
    figure = _figure(f"Calibration: expected calibration error {error:.3f}")
    draw_calibration(figure.add_subplot(), bins)
    return figure


def _parameters(parameters: Mapping[str, Any]) -> Iterator[Figure]:
    lines = [[name, _cut(str(value))] for name, value in parameters.items()]
    yield from _grid("Parameters", ["parameter", "value"], lines)


def _cut(text: str) -> str:
    return text if len(text) <= 110 else text[:107] + "..."
