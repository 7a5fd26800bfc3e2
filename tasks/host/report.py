"""What this machine can contain, without a package: for operators, the documentation and health checks."""

from __future__ import annotations

import os
import queue
import sys
import tempfile
from pathlib import Path
from typing import Any

from tasks.errors import HostError
from tasks.host.containment import clean_environment
from tasks.host.errors import FunctionFailure
from tasks.host.link import ChildLink, Frame
from tasks.host.wire import PROTOCOL_VERSION

_TIMEOUT_S = 30.0


def containment_report(interpreter: Path | None = None) -> dict[str, Any]:
    """What is in force in a child that is started here and now.

    Args:
        interpreter: the Python to try; this one by default.

    Returns:
        ``environment``, ``files``, ``network`` and ``processes`` (bool: contained), ``user`` (words),
        ``kernel`` (list of what is used), ``missing`` (list of what could not be had).

    Raises:
        HostError: the child cannot be started.
    """
    answers: queue.SimpleQueue[Frame | FunctionFailure] = queue.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="chipline-host-") as folder:
        link = ChildLink(
            interpreter=interpreter or Path(sys.executable),
            environment=clean_environment(os.environ, folder),
            folder=Path(folder),
            inherit=(),
            name="of the containment report",
            memory_mb=1024,
            on_frame=answers.put,
            on_failure=answers.put,
        )
        try:
            link.start()
            link.expect_within(_TIMEOUT_S, "to start")
            asked = {"parent": os.getpid(), "folder": folder, "read": [], "gpu": False}
            link.send(
                {
                    "op": "start",
                    "version": PROTOCOL_VERSION,
                    "processor_type": "CPU",
                    "device": -1,
                    "slots": [],
                    "containment": asked,
                }
            )
            answer = answers.get()
        except OSError as error:
            raise HostError(
                f"The interpreter {interpreter} cannot be started: {error}.", "Give the path of a Python."
            ) from error
        finally:
            link.close()
    if isinstance(answer, FunctionFailure):
        raise answer
    report = answer.get("report")
    return report if isinstance(report, dict) else {}
