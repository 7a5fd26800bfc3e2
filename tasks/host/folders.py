"""The folder of a host: locked as long as its host lives; what killed hosts left behind is removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = "chipline-host-"
# One that was made just now may not be locked yet.
_YOUNG_S = 60.0


class HostFolder:
    """A new folder for temporary files.

    Attributes:
        path: where it is; exists until ``remove``.
    """

    def __init__(self) -> None:
        _remove_left_behind()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Belongs to this process alone (the child does not inherit it): who is killed lets go of it.
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a file system without locks: then it is only never found free
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        """Removes it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_left_behind() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Not ours to open, no folder, locked by a host that lives, or gone meanwhile: left alone.
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = os.fstat(descriptor)
                if time.time() - max(found.st_mtime, found.st_ctime) > _YOUNG_S:
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
