"""Whether a function may run with what this machine can contain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import HostError
from tasks.package.weights_check import code_archives
from tasks.settings import settings


def permit(folder: Path, containment: Mapping[str, Any], *, foreign: bool) -> None:
    """Refuses to go on where code that is not ours would run with files or network open.

    Args:
        folder: the unpacked package.
        containment: what is in force, by ``tasks.host.containment.confine``.
        foreign: the package was not made here.

    Raises:
        HostError: it is foreign, or has weights that carry code, and the operator has not given his word.
    """
    missing = [what for what in ("network", "files") if not containment.get(what)]
    if not missing or settings().allow_uncontained:
        return
    reason = _reason(folder, foreign)
    if reason is not None:
        raise HostError(
            f"The package {folder.name} {reason}, and this machine cannot contain its function "
            f"({', '.join(missing)} stay open).",
            "Run it on a Linux with Landlock or user namespaces, or give the operator's word: "
            "CHIPLINE_ALLOW_UNCONTAINED=true.",
        )


def _reason(folder: Path, foreign: bool) -> str | None:
    if foreign:
        return "was not made here"
    archives = code_archives(folder)
    # Such weights are programs: loading them runs what they hold.
    return f"has weights that carry code ({archives[0][0].name}: {archives[0][1]})" if archives else None
