"""A package's card, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.package.checks import Problem
from tasks.package.definition import DefinitionClass
from tasks.package.examine import Examination, card_rows
from tasks.package.function_source import FunctionArgument

_MOST_ROWS = 200  # of classes and files; a package may have thousands
_FROM_SOURCE = "as its source writes them; the function was not run"


def card_text(examination: Examination) -> str:
    """The card for a terminal: plain text, ends with a newline."""
    lines = [f"{name:<12} {_line(text)}" for name, text in card_rows(examination)]
    classes = _classes(examination)
    if classes:
        lines.append("classes")
        lines += _capped([f"  {item.value:>6} {_color(item):<9} {_line(item.name)}" for item in classes])
    if examination.arguments:
        lines.append(f"parameters ({_FROM_SOURCE})")
        for item in examination.arguments:
            shown = f"{_line(item.name)} = {_line(item.value) or '?'}"
            lines.append(f"  {shown:<32} {_line(item.description)}".rstrip())
    lines.append("files")
    lines += _capped([f"  {item.size:>14,} {_line(item.path)}" for item in examination.files])
    return "\n".join(lines) + "\n"


def problems_text(problems: Sequence[Problem]) -> str:
    """The problems with their remedies for a terminal; empty where there are none."""
    return "".join(
        f"{number}. [{item.check}] {_line(item.text)}\n   {_line(item.remedy)}\n"
        for number, item in enumerate(problems, 1)
    )


def card_markdown(examination: Examination, may_run: str = "") -> str:
    """The card and the problems for a page; nothing that the package says becomes markup.

    Args:
        examination: what was found.
        may_run: whether it may run here, where that was asked.
    """
    blocks = [f"# Package {_cell(examination.name or examination.file)}"]
    if examination.problems:
        faults = [(str(item.check), item.text, item.remedy) for item in examination.problems]
        count = len(faults)
        blocks.append(f"**{count} {'problem' if count == 1 else 'problems'}: it cannot be used.**")
        blocks.append(_table(("check", "problem", "remedy"), faults))
    asked = [("may run here", may_run)] if may_run else []
    blocks.append(_table(("", ""), [*card_rows(examination), *asked]))
    classes = _classes(examination)
    if classes:
        rows = [(str(item.value), item.name, _color(item)) for item in classes]
        blocks += ["## Classes", _table(("value", "name", "colour"), rows)]
    if examination.arguments:
        blocks += [f"## Parameters\n\nOf the function, {_FROM_SOURCE}.", _arguments(examination.arguments)]
    files = [(item.path, f"{item.size:,}") for item in examination.files]
    blocks += ["## Files", _table(("path", "bytes"), files)]
    return "\n\n".join(blocks) + "\n"


def _arguments(arguments: Sequence[FunctionArgument]) -> str:
    return _table(
        ("name", "type", "default", "description"),
        [(item.name, item.data_type, item.value, item.description) for item in arguments],
    )


def _classes(examination: Examination) -> list[DefinitionClass]:
    return (examination.definition.classes if examination.definition else None) or []


def _color(item: DefinitionClass) -> str:
    return "#{:02x}{:02x}{:02x}".format(*item.color) if item.color is not None else ""


def _line(text: str) -> str:
    # A package's texts must not move the cursor or colour the terminal of who looks at it.
    return "".join(character if character.isprintable() else " " for character in text).strip()


def _capped(lines: list[str]) -> list[str]:
    left = len(lines) - _MOST_ROWS
    return lines if left <= 0 else [*lines[:_MOST_ROWS], f"  ... and {left:,} more"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(text) for text in row) + " |" for row in rows[:_MOST_ROWS]]
    if len(rows) > _MOST_ROWS:
        lines.append(f"\n… and {len(rows) - _MOST_ROWS:,} more")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text inside a table: no line breaks, and nothing that Markdown or HTML would act upon."""
    escaped = _line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{character}" if character in "\\`*_[]|!#~$" else character for character in escaped)
