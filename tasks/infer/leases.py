"""Leases: a run says what it still needs of the store, so that no collector takes it away.

A lease is one small object, ``leases/runs/<id>.json``, that names a plan; the plan names the shards. While
its run is under way the lease is written again and again; a lease that has not been for the grace time counts
no more. What a killed, failed or paused run has finished stays for that long.

A run and a collector that meet agree without a lock (each writes first and looks afterwards, on a store whose
reads and lists see what was written):

    run         1 saves its plan     2 puts its lease        3 waits while a turn lasts   4 looks for shards
    collector   1 announces a turn   2 reads all leases      3 deletes what none names    4 ends the turn

Either the collector reads the lease, or the run sees the turn and waits until it has ended or another one has
begun. A turn lasts for seconds; a run waits for at most five minutes, since by then a turn that has neither
ended nor been followed is that of a dead collector. Both times are measured by the one who waits or deletes,
so that clocks need not agree. What the protocol cannot bear is a request to delete that the network holds
back for more than four minutes.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import NotFoundError, PreconditionFailedError, RunError, StoreError
from tasks.settings import settings
from tasks.store import ObjectStore, join

LEASES = "leases"
RENEW_SECONDS = 600.0
TURN_SECONDS = 30.0
TURN_WAIT_SECONDS = 300.0
_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0
_JSON = "application/json"


class Lease(BaseModel):
    """What a run needs.

    Attributes:
        plan_uri: of the plan whose shards and folder it needs.
        flow_run: the run in Prefect; empty outside of one.
        number: how often it was written; two writings differ.
    """

    model_config = ConfigDict(frozen=True)

    plan_uri: str
    flow_run: str = ""
    number: int = 0


class _Turn(BaseModel):
    """The collectors' word: ``idle``, or that a turn is under way; ``number`` counts the changes."""

    model_config = ConfigDict(frozen=True)

    collector: str
    number: int
    idle: bool


class HeldLease:
    """The lease of a run that is under way; made by :func:`leased`."""

    def __init__(self, store: ObjectStore, lease: Lease) -> None:
        self.uri = join(settings().root, LEASES, "runs", f"{uuid.uuid4().hex}.json")
        self._store = store
        self._lease = lease
        self._lost = False
        self._take()

    def keep(self) -> None:
        """Renew the lease where that is due; cheap enough for every second.

        Raises:
            StoreError: the store cannot be reached; the next call tries again.
        """
        if time.monotonic() - self._renewed > RENEW_SECONDS:
            # A store that does not answer now is asked again in a minute: each attempt takes its time.
            self._renewed += _PATIENCE_SECONDS
            self._renew()

    def held_all_along(self) -> bool:
        """Renew the lease; whether it was never lost since the last time this was asked.

        A run that slept for longer than the grace time may find its lease, and shards that it took for done,
        collected. The lease is then its own again, but what is done has to be looked for once more.
        """
        self._renew()
        held, self._lost = not self._lost, False
        return held

    def release(self) -> None:
        """The run has ended well."""
        self._store.delete(self.uri)

    def _take(self) -> None:
        self._etag = self._store.put(self.uri, self._data(), if_none_match=True, content_type=_JSON)
        self._renewed = time.monotonic()
        wait_for_turn(self._store)

    def _renew(self) -> None:
        self._lease = self._lease.model_copy(update={"number": self._lease.number + 1})
        try:
            self._etag = self._store.put(self.uri, self._data(), if_match=self._etag, content_type=_JSON)
        except PreconditionFailedError:
            self._lost = True
            self._take()
        self._renewed = time.monotonic()

    def _data(self) -> bytes:
        return self._lease.model_dump_json().encode()


@contextmanager
def leased(store: ObjectStore, plan_uri: str, *, flow_run: str = "") -> Iterator[HeldLease]:
    """Hold a lease on a plan that is in the store; look for shards only within.

    It is released when the block ends well. After an error it stays, so that what is finished is there when
    the run is started again within the collector's grace time.
    """
    held = HeldLease(store, Lease(plan_uri=plan_uri, flow_run=flow_run))
    yield held
    held.release()


def wait_for_turn(store: ObjectStore) -> None:
    """Return when no collector deletes by leases that it read before this call."""
    first: str | None = None
    end = time.monotonic() + TURN_WAIT_SECONDS
    while time.monotonic() < end:
        turn, etag = _read_turn(store)
        if turn is None or turn.idle or (first is not None and etag != first):
            return
        first = etag
        time.sleep(_LOOK_SECONDS)


class Turns:
    """The turns of one collector: :meth:`begin`, read the leases, delete until ``over``, and again."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._uri = _turn_uri()
        self._name = uuid.uuid4().hex
        self._end = 0.0
        turn, self._etag = _read_turn(store)
        self._number = 0 if turn is None else turn.number
        if turn is not None and not turn.idle:
            age = (datetime.now(UTC) - store.stat(self._uri).modified).total_seconds()
            if age < TURN_WAIT_SECONDS:
                raise RunError(
                    f"Another collection is under way, or ended in the middle {age:.0f} s ago.",
                    "Wait for its end, or five minutes, and start again.",
                )

    @property
    def over(self) -> bool:
        """Whether nothing more may be deleted in this turn."""
        return time.monotonic() > self._end

    def begin(self) -> None:
        """Announce a turn; every lease that a run relies on from now on is put already, or waits.

        Raises:
            RunError: another collector took over.
        """
        started = time.monotonic()
        self._say(idle=False)
        self._end = started + TURN_SECONDS

    def end(self) -> None:
        """The last turn is over."""
        self._end = 0.0
        self._say(idle=True)

    def _say(self, *, idle: bool) -> None:
        self._number += 1
        data = _Turn(collector=self._name, number=self._number, idle=idle).model_dump_json().encode()
        try:
            self._etag = self._store.put(
                self._uri,
                data,
                if_none_match=self._etag is None,
                if_match=self._etag,
                content_type=_JSON,
            )
        except PreconditionFailedError as error:
            raise RunError(
                "Another collection took over.", "Let it finish; start one collection at a time."
            ) from error


class Needed(BaseModel):
    """What the leases say.

    Attributes:
        keys: of shards that a live lease names.
        folders: of runs under way, each ending in '/'.
        live: number of leases.
        expired: URIs of leases that count no more.
        without_plan: live leases whose plan is gone, so that their runs cannot go on.
    """

    model_config = ConfigDict(frozen=True)

    keys: frozenset[str]
    folders: frozenset[str]
    live: int
    expired: list[str]
    without_plan: list[str]


class LeaseReader:
    """Reads all leases, again and again; every plan once."""

    def __init__(self, store: ObjectStore, grace: timedelta) -> None:
        self._store = store
        self._grace = grace
        self._plans: dict[str, frozenset[str] | None] = {}

    def read(self) -> Needed:
        """What is needed now.

        Raises:
            StoreError: a live lease or its plan cannot be understood, so that nothing may be deleted.
        """
        keys: set[str] = set()
        folders: set[str] = set()
        live, expired, without_plan = 0, [], []
        now = datetime.now(UTC)
        for item in self._store.list(join(settings().root, LEASES, "runs") + "/"):
            if now - item.modified > self._grace:
                expired.append(item.uri)
                continue
            try:
                lease = Lease.model_validate_json(self._store.get(item.uri))
            except NotFoundError:  # released since it was listed
                continue
            except ValidationError as error:
                raise StoreError(
                    f"{item.uri} is no lease.", "Remove it, when no run needs it, and collect again."
                ) from error
            live += 1
            named = self._shards(lease.plan_uri)
            if named is None:
                without_plan.append(item.uri)
                continue
            keys |= named
            folders.add(lease.plan_uri.rpartition("/")[0] + "/")
        return Needed(
            keys=frozenset(keys),
            folders=frozenset(folders),
            live=live,
            expired=expired,
            without_plan=without_plan,
        )

    def _shards(self, plan_uri: str) -> frozenset[str] | None:
        # The folder's name is the hash of the keys: a plan of the same name never has others.
        if plan_uri not in self._plans:
            try:
                # The plan's model may be another version's; its keys are where they always were.
                shards = json.loads(self._store.get(plan_uri))["shards"]
                self._plans[plan_uri] = frozenset(shard["key"] for shard in shards)
            except NotFoundError:
                return None
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(
                    f"{plan_uri}, which a run under way needs, is no plan of an inference.",
                    "Start that run again, which plans anew, or remove its lease; then collect again.",
                ) from error
        return self._plans[plan_uri]


def _turn_uri() -> str:
    return join(settings().root, LEASES, "turn.json")


def _read_turn(store: ObjectStore) -> tuple[_Turn | None, str | None]:
    try:
        data, etag = store.get_versioned(_turn_uri())
    except NotFoundError:
        return None, None
    try:
        return _Turn.model_validate_json(data), etag
    except ValidationError as error:
        raise StoreError(
            f"{_turn_uri()} is damaged.", "Remove it when no collection is under way."
        ) from error
