"""Collecting garbage from the store: old results of shards, folders of runs that never ended, half uploads.

What a run under way needs is known from its lease (``tasks.infer.leases``). Everything is looked for first;
then it is deleted in turns, each of which reads the leases again before it deletes anything.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, groupby

from pydantic import BaseModel

from tasks.errors import NotFoundError
from tasks.infer.leases import LeaseReader, Needed, Turns
from tasks.infer.parameters_collect import Garbage
from tasks.settings import settings
from tasks.store import HalfUpload, ObjectInfo, ObjectStore, join
from tasks.store.publication import MANIFEST

BATCH = 500
_AT_ONCE = 16
# What workers write; half of an upload elsewhere is none of ours.
_WRITTEN = ("shards", "outputs", "training-data", "packages")
# A folder of ours is named by its run key.
_RUN_FOLDER = re.compile(r"(.*/[0-9a-f]{64}/)[^/]")
_PLAN = re.compile(r"plan-\d+\.json\Z")


class Collected(BaseModel):
    """What was found of one kind.

    Attributes:
        found, found_bytes: objects that are old enough and that no run needs.
        deleted, deleted_bytes: of them; none in a dry run.
        needed: objects that are old enough, but that a run under way needs.
        young: objects that are not old enough.
    """

    what: Garbage
    found: int = 0
    found_bytes: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    needed: int = 0
    young: int = 0


class Collection(BaseModel):
    """What a collection found and did.

    Attributes:
        kinds: one record per kind of garbage.
        leases: of runs under way, or ended badly within the grace time.
        leases_expired: those that count no more.
        remarks: what a person should know.
    """

    kinds: list[Collected]
    leases: int
    leases_expired: int
    remarks: list[str]


@dataclass(frozen=True)
class _Candidate:
    """What may go, as one: a shard, a folder, an upload. ``uri`` of a folder ends in '/'."""

    uri: str
    objects: int
    size: int
    upload: HalfUpload | None = None


class Collector:
    """One collection.

    Args:
        store: the store; the settings' root is what is looked into.
        older_than: age from which something may go.
        grace: how long a lease counts after it was last written.
        marked: called once after everything was looked for and before anything is deleted.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        older_than: timedelta,
        grace: timedelta,
        marked: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._root = settings().root
        self._older_than = older_than
        self._leases = LeaseReader(store, grace)
        self._marked = marked

    def run(self, what: Sequence[Garbage], *, dry_run: bool) -> Collection:
        """Look, and delete unless it is a dry run.

        Raises:
            RunError: another collection is under way.
            StoreError: the store cannot be read, or a lease or its plan cannot be understood.
        """
        needed = self._leases.read()
        before = datetime.now(UTC) - self._older_than
        look = {
            "SHARDS": self._shards,
            "UNFINISHED_FOLDERS": self._folders,
            "HALF_UPLOADS": self._uploads,
        }
        kinds, candidates = [], []
        for kind in dict.fromkeys(what):
            tally = Collected(what=kind)
            candidates.append(list(look[kind](needed, before, tally)))
            tally.found = sum(candidate.objects for candidate in candidates[-1])
            tally.found_bytes = sum(candidate.size for candidate in candidates[-1])
            kinds.append(tally)
        if self._marked is not None:
            self._marked()
        if not dry_run:
            self._delete(kinds, candidates, before, needed.expired)
        return Collection(
            kinds=kinds,
            leases=needed.live,
            leases_expired=len(needed.expired),
            remarks=[
                f"The plan that {uri} names is gone: its run cannot go on." for uri in needed.without_plan
            ],
        )

    def _shards(self, needed: Needed, before: datetime, tally: Collected) -> Iterator[_Candidate]:
        for item in self._store.list(join(self._root, "shards") + "/"):
            if item.modified > before:
                tally.young += 1
            elif _key(item.uri) in needed.keys:
                tally.needed += 1
            else:
                yield _Candidate(item.uri, 1, item.size)

    def _folders(self, needed: Needed, before: datetime, tally: Collected) -> Iterator[_Candidate]:
        for folder, items in _by_folder(self._store.list(join(self._root, "outputs") + "/")):
            inside = _Inside(folder, items)
            if not inside.unfinished:
                continue
            if inside.newest > before:
                tally.young += inside.objects
            elif folder in needed.folders:
                tally.needed += inside.objects
            else:
                yield _Candidate(folder, inside.objects, inside.size)

    def _uploads(self, needed: Needed, before: datetime, tally: Collected) -> Iterator[_Candidate]:
        uploads = (self._store.half_uploads(join(self._root, kind) + "/") for kind in _WRITTEN)
        for upload in chain.from_iterable(uploads):
            if upload.begun > before:
                tally.young += 1
            elif any(upload.uri.startswith(folder) for folder in needed.folders):
                tally.needed += 1
            else:
                yield _Candidate(upload.uri, 1, upload.size, upload)

    def _delete(
        self,
        kinds: Sequence[Collected],
        candidates: Sequence[list[_Candidate]],
        before: datetime,
        expired: Sequence[str],
    ) -> None:
        turns = Turns(self._store)
        try:
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="chipline-collect") as pool:
                for tally, found in zip(kinds, candidates, strict=True):
                    left = deque(found)
                    while left:
                        turns.begin()
                        self._one_turn(turns, pool, tally, left, before)
        finally:  # nothing is being deleted any more, and nobody needs to wait
            turns.end()
        for uri in expired:
            self._store.delete(uri)

    def _one_turn(
        self,
        turns: Turns,
        pool: ThreadPoolExecutor,
        tally: Collected,
        left: deque[_Candidate],
        before: datetime,
    ) -> None:
        """Take a batch from what is left; what cannot go before the turn is over is put back."""
        needed = self._leases.read()
        going = []
        for candidate in [left.popleft() for _ in range(min(BATCH, len(left)))]:
            if candidate.uri in needed.folders or _key(candidate.uri) in needed.keys:
                tally.needed += candidate.objects
            else:
                going.append(candidate)

        def remove(candidate: _Candidate) -> tuple[int, int, bool]:
            return self._remove(turns, candidate, before)

        for candidate, (objects, size, ended) in zip(going, pool.map(remove, going), strict=True):
            tally.deleted += objects
            tally.deleted_bytes += size
            if not ended:
                left.append(candidate)

    def _remove(self, turns: Turns, candidate: _Candidate, before: datetime) -> tuple[int, int, bool]:
        """Objects and bytes that are gone, and whether all of it was gone before the turn was over."""
        if turns.over:
            return 0, 0, False
        if candidate.upload is not None:
            try:
                self._store.abandon(candidate.upload)
            except NotFoundError:  # completed or dropped meanwhile
                return 0, 0, True
            return 1, candidate.size, True
        if not candidate.uri.endswith("/"):
            self._store.delete(candidate.uri)
            return 1, candidate.size, True
        inside = _Inside(candidate.uri, self._store.list(candidate.uri), keep=True)
        if inside.newest > before or not inside.unfinished:  # a run went on and ended in the meantime
            return 0, 0, True
        objects = size = 0
        # The plan last, by which the rest of a half-deleted folder is found again.
        for item in sorted(inside.items, key=lambda item: _PLAN.match(_name(item.uri)) is not None):
            if turns.over:
                return objects, size, False
            self._store.delete(item.uri)
            objects, size = objects + 1, size + item.size
        return objects, size, True


class _Inside:
    """What a run's folder holds.

    Attributes:
        unfinished: whether an inference was planned there and never published. Other tools' folders stay:
            their runs hold no lease.
    """

    def __init__(self, folder: str, items: Iterator[ObjectInfo], *, keep: bool = False) -> None:
        self.objects, self.size = 0, 0
        self.newest = datetime.min.replace(tzinfo=UTC)
        self.items: list[ObjectInfo] = []
        published = planned = False
        for item in items:
            self.objects, self.size = self.objects + 1, self.size + item.size
            self.newest = max(self.newest, item.modified)
            name = item.uri.removeprefix(folder)
            published = published or name == MANIFEST
            planned = planned or _PLAN.match(name) is not None
            if keep:
                self.items.append(item)
        self.unfinished = planned and not published


def _name(uri: str) -> str:
    return uri.rpartition("/")[2]


def _key(uri: str) -> str:
    """The planned key of a shard; one that was computed with smaller batches says so behind a hyphen."""
    return _name(uri).partition("-")[0]


def _by_folder(items: Iterator[ObjectInfo]) -> Iterator[tuple[str, Iterator[ObjectInfo]]]:
    """Objects by the run's folder that they lie in; what lies in none is left out."""

    def folder(item: ObjectInfo) -> str:
        found = _RUN_FOLDER.match(item.uri)
        return found.group(1) if found else ""

    # A listing is in the order of its keys, so that a folder's objects come one after the other.
    for name, inside in groupby(items, folder):
        if name:
            yield name, inside
