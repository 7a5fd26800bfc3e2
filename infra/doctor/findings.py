"""What the doctor finds: one line each, with the command that installs or mends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["good", "note", "problem"]
_MARKS: dict[State, str] = {"good": "ok", "note": "--", "problem": "!!"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        section: the heading it stands under.
        name: what was looked at.
        state: ``good``; ``note``: not there and not needed for everything; ``problem``: has to be mended.
        detail: version, number, reason.
        remedy: the command or sentence that installs or mends; empty for what is good.
    """

    section: str
    name: str
    state: State
    detail: str = ""
    remedy: str = ""


def as_text(findings: Sequence[Finding]) -> str:
    """The findings for a person, by section, ending with a summary."""
    lines: list[str] = []
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section] if lines else [section]
        lines.append(f"  {_MARKS[finding.state]}  {finding.name:<22} {finding.detail}".rstrip())
        if finding.remedy:
            lines.append(f"      {'':<22} → {finding.remedy}")
    problems = [finding for finding in findings if finding.state == "problem"]
    notes = sum(finding.state == "note" for finding in findings)
    lines += ["", f"{len(problems)} to mend, {notes} not there and not needed for everything."]
    return "\n".join(lines)
