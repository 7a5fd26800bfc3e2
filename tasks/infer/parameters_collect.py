"""Parameters of ``collect_shards``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.parameters import ToolParameters

Garbage = Literal["SHARDS", "UNFINISHED_FOLDERS", "HALF_UPLOADS"]


class CollectParameters(ToolParameters):
    """Parameters of ``collect_shards``."""

    dry_run: bool = Field(
        default=True, description="Only count what would be deleted, and its bytes; nothing is deleted"
    )
    older_than_days: float = Field(
        default=30.0,
        ge=1,
        description="Age from which something may go: of a shard or an upload since it was written, of an "
        "unfinished folder since its newest file was",
    )
    grace_days: float = Field(
        default=7.0,
        ge=0.05,
        description="How long a run that was killed, failed or paused keeps what it has finished: its lease "
        "counts for this long since it was last renewed",
    )
    what: list[Garbage] = Field(
        default=["SHARDS", "UNFINISHED_FOLDERS", "HALF_UPLOADS"],
        min_length=1,
        description="SHARDS: results of shards. UNFINISHED_FOLDERS: plans, reports and half-written outputs "
        "of inferences that never ended. HALF_UPLOADS: uploads that were begun and not completed",
    )
