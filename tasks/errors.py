"""The error family. Every message says what is wrong and ends with the remedy."""

from __future__ import annotations


class ChiplineError(Exception):
    """Root of all errors that Chipline raises on purpose.

    Args:
        problem: what is wrong, in one sentence, naming the thing (URI, field, parameter).
        remedy: what the person can do about it, in one sentence.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = problem.rstrip()
        self.remedy = remedy.rstrip()
        super().__init__(problem, remedy)

    def __str__(self) -> str:
        problem = self.problem if self.problem.endswith((".", "!", "?", ":")) else self.problem + "."
        return f"{problem} {self.remedy}"


class BadInputError(ChiplineError, ValueError):
    """A parameter or an input that cannot be used as it is."""


class NotFoundError(ChiplineError, FileNotFoundError):
    """A named object, file or folder does not exist."""

    # OSError (a base through FileNotFoundError) would format two arguments as errno and text.
    def __str__(self) -> str:
        return ChiplineError.__str__(self)


class StoreError(ChiplineError, OSError):
    """The object store refused a request or cannot be reached."""

    def __str__(self) -> str:
        return ChiplineError.__str__(self)


class PreconditionFailedError(StoreError):
    """A conditional put lost: the object exists already or has changed."""


class RasterError(ChiplineError, OSError):
    """A raster that cannot be opened or read."""

    def __str__(self) -> str:
        return ChiplineError.__str__(self)


class LabelError(BadInputError):
    """Labels that cannot be read or do not fit the imagery."""


class TrainingDataError(BadInputError):
    """A training data folder that cannot be used."""


class PackageError(BadInputError):
    """A deep learning package that breaks its contract."""


class HostError(ChiplineError, RuntimeError):
    """An inference function crashed, hung or broke the host's protocol."""


class DeviceError(ChiplineError, RuntimeError):
    """A device that was asked for is not there."""


class RunError(ChiplineError, RuntimeError):
    """A run could not be brought to its end: a part was lost too often, a leaf failed."""


class TrackingError(ChiplineError, OSError):
    """MLflow is not configured, refused a request or cannot be reached."""

    def __str__(self) -> str:
        return ChiplineError.__str__(self)
