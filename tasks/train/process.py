"""One of the processes of a training: ``python -m tasks.train.process PLAN_URI``, started by torchrun.

Progress and errors are lines of JSON on the standard output, see ``tasks/train/launch.py``.
"""

from __future__ import annotations

import json
import sys

from torch import distributed

from tasks.errors import ChiplineError
from tasks.store import ObjectStore
from tasks.train.hardware import group
from tasks.train.work import follow_training, run_training, start_tracker


def main(plan_uri: str) -> int:
    """Take part in the training of a plan; the exit code is 0 when it is done."""
    store = ObjectStore()
    try:
        if group().writes:
            run_training(store, plan_uri, start=start_tracker, progress=_tell)
        else:
            follow_training(store, plan_uri)
    except ChiplineError as error:
        _print({"error": str(error)})
        return 1
    except Exception as error:
        _print({"error": f"{type(error).__name__}: {error}"})
        raise
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return 0


def _tell(fraction: float, what: str) -> None:
    _print({"fraction": fraction, "what": what})


def _print(said: dict[str, object]) -> None:
    # One write: lines of several processes go through one pipe.
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
