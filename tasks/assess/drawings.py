"""Drawings of accuracy on matplotlib's axes, for the reports of trainings and of assessments."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVES_A_ROW = 3
_SIDE = 3.2  # of a small drawing, inches


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches, outside of any window system."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def png_of(figure: Figure) -> bytes:
    """The figure as PNG; the same drawing gives the same bytes (no date and no version inside)."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def draw_confusion(axes: Axes, counts: npt.NDArray[np.integer], names: Sequence[str]) -> None:
    """Shares of each true class as colour, counts as text.

    Args:
        counts: rows truth, columns prediction  # (classes, classes)
        names: of the classes.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for row, column in np.ndindex(counts.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        text = f"{shares[row, column]:.2f}\n{counts[row, column]:,}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")


def draw_curve(axes: Axes, precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]) -> None:
    """Precision over recall."""
    axes.plot(recall, precision)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.3)


def draw_calibration(axes: Axes, bins: Sequence[Mapping[str, float]]) -> None:
    """Share of right predictions over their confidence; on the diagonal, confidences are what they say."""
    axes.plot([0, 1], [0, 1], "--", color="#bbb")
    axes.plot([item["confidence"] for item in bins], [item["share_right"] for item in bins], marker="o")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="share right")
    axes.grid(alpha=0.3)


def confusion_png(counts: npt.NDArray[np.integer], names: Sequence[str]) -> bytes:
    """:func:`draw_confusion` as a picture."""
    size = max(3.0, 0.6 * len(names) + 2)
    figure = new_figure(size + 0.5, size)
    draw_confusion(figure.add_subplot(), counts, names)
    return png_of(figure)


def curves_png(
    curves: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]],
) -> bytes:
    """Precision and recall of every class, by name, each in a drawing of its own."""
    columns = min(_CURVES_A_ROW, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(_SIDE * columns, _SIDE * rows)
    for place, (name, (precision, recall)) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        draw_curve(axes, precision, recall)
        axes.set_title(name, fontsize=9)
    return png_of(figure)


def calibration_png(bins: Sequence[Mapping[str, float]], error: float) -> bytes:
    """:func:`draw_calibration` as a picture."""
    figure = new_figure(_SIDE + 0.6, _SIDE + 0.6)
    axes = figure.add_subplot()
    draw_calibration(axes, bins)
    axes.set_title(f"expected calibration error {error:.3f}", fontsize=9)
    return png_of(figure)
