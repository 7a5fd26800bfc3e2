"""Who vouches for a package. A package is code, so somebody must.

Three things may vouch, all by the SHA-256 of the ``.dlpk``, so that a copy is as good as the original:

- a training of this installation, which leaves ``made/<sha256>.json`` when it publishes its package. Only the
  role that trains may write there; a package is not taken for made here because it lies in ``packages/``.
- an approval, ``approvals/<sha256>.json``: who, when and why. Only the admin may write there, and
  nothing that was written is ever replaced.
- the setting ``CHIPLINE_APPROVED_PACKAGES`` of the operator.

A revocation, ``revocations/<sha256>.json``, takes all of that back: who, when and why, written by the admin
and never replaced. It stands for good, since it speaks of bytes; a mended package has another digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from tasks.errors import BadInputError, NotFoundError, PackageError, PreconditionFailedError, StoreError
from tasks.package.pack import NAME
from tasks.settings import settings
from tasks.store import ObjectStore, join, read_manifest

APPROVALS = "approvals"
REVOCATIONS = "revocations"
MADE = "made"
_TRAININGS = "outputs/train_deep_learning_model"
_DIGEST = re.compile(r"[0-9a-f]{64}")

Record = TypeVar("Record", bound=BaseModel)


class Approval(BaseModel):
    """Somebody's word for a package, as it is stored."""

    sha256: str
    name: str = Field(description="the package's name, for people")
    approved_by: str
    approved_at: str = Field(description="ISO 8601, UTC")
    reason: str


class Revocation(BaseModel):
    """The word that a package shall not run any more, as it is stored."""

    sha256: str
    name: str = Field(description="the package's name, for people")
    revoked_by: str
    revoked_at: str = Field(description="ISO 8601, UTC")
    reason: str


class MadeHere(BaseModel):
    """A training's word for the package that it made, as it is stored."""

    sha256: str
    name: str
    made_by: str = Field(description="URI of the training's outputs")
    made_at: str = Field(description="ISO 8601, UTC")


@dataclass(frozen=True)
class Trust:
    """By what a package is trusted.

    Attributes:
        kind: made here, approval or setting.
        text: the same for people, with names and times.
    """

    kind: Literal["made here", "approval", "setting"]
    text: str


def find_trust(store: ObjectStore, digest: str, name: str) -> Trust | None:
    """What vouches for a package; None if nothing does.

    Raises:
        StoreError: the store cannot be asked, and the setting does not vouch either.
        PackageError: the package was revoked, or a record in the store is not what it should be.
    """
    approved = {item.strip().lower().removeprefix("sha256:") for item in settings().approved_packages}
    by_setting = Trust("setting", "the setting CHIPLINE_APPROVED_PACKAGES") if digest in approved else None
    try:
        refuse_revoked(store, digest, name)
        return _by_record(store, digest, name) or by_setting
    except StoreError:
        if by_setting is None:
            raise
        return by_setting


def trust_text(store: ObjectStore, digest: str, name: str) -> str:
    """Whether a package may run here, for a person: by whose word, or by whose word not.

    Raises:
        StoreError: as :func:`find_trust`.
    """
    try:
        trust = find_trust(store, digest, name)
    except PackageError as error:
        return f"no: {error.problem}"
    return f"yes: {trust.text}" if trust is not None else "not yet: nobody vouches for it"


def _by_record(store: ObjectStore, digest: str, name: str) -> Trust | None:
    made = _read(store, _uri(MADE, digest), MadeHere, digest)
    if made is not None:
        return Trust("made here", f"made here by {made.made_by} at {made.made_at}")
    approval = find_approval(store, digest)
    if approval is not None:
        return Trust(
            "approval",
            f"approved by {approval.approved_by} at {approval.approved_at}: {approval.reason}",
        )
    training = _published_training(store, digest, name)
    return Trust("made here", f"made here by {training}") if training is not None else None


def _published_training(store: ObjectStore, digest: str, name: str) -> str | None:
    """The published training that made the package, for trainings of early versions left no record."""
    if not NAME.fullmatch(name):
        return None  # trainings give no such names
    prefix = join(settings().root, _TRAININGS, name) + "/"
    for item in store.list(prefix):
        folder, _, file = item.uri.rpartition("/")
        if file == "manifest.json":
            manifest = read_manifest(store, folder)
            if manifest is not None and manifest.details.get("digest") == digest:
                return folder
    return None


def find_approval(store: ObjectStore, digest: str) -> Approval | None:
    """The recorded approval of a package; None if there is none."""
    return _read(store, _uri(APPROVALS, digest), Approval, digest)


def find_revocation(store: ObjectStore, digest: str) -> Revocation | None:
    """The recorded revocation of a package; None if there is none."""
    return _read(store, _uri(REVOCATIONS, digest), Revocation, digest)


def refuse_revoked(store: ObjectStore, digest: str, name: str) -> None:
    """Nothing more may be done with a revoked package.

    Raises:
        PackageError: it was revoked; the message says by whom, when and why.
    """
    found = find_revocation(store, digest)
    if found is not None:
        raise PackageError(
            f"The package {name} was revoked by {found.revoked_by} at {found.revoked_at}: {found.reason} "
            f"(SHA-256 {digest}).",
            "Use another version of it. It is not taken back; a mended package has another SHA-256.",
        )


def record_made(store: ObjectStore, digest: str, name: str, made_by: str) -> None:
    """A training vouches for what it made; a second time is no error."""
    record = MadeHere(sha256=digest, name=name, made_by=made_by, made_at=_now())
    _write_once(store, _uri(MADE, digest), record)


def approve_package(
    store: ObjectStore, digest: str, *, name: str, uri: str, approved_by: str, reason: str
) -> Approval:
    """Record an approval; one that exists stays as it is and is returned.

    Args:
        store: where it is recorded.
        digest: SHA-256 of the package; who calls has computed it from the file and checked the package.
        name: the package's name.
        uri: where the package lies, for messages.
        approved_by: who vouches.
        reason: why.

    Raises:
        BadInputError: nobody is named, or no reason.
        PackageError: this role may not write approvals; the remedy says who may.
    """
    _check_words(name, "approved", approved_by, reason)
    refuse_revoked(store, digest, name)
    approval = Approval(
        sha256=digest,
        name=name,
        approved_by=approved_by.strip(),
        approved_at=_now(),
        reason=reason.strip(),
    )
    written = _write_as_admin(store, APPROVALS, approval, f"approve {uri} --by NAME --reason TEXT")
    return approval if written else find_approval(store, digest) or approval


def revoke_package(store: ObjectStore, digest: str, *, name: str, revoked_by: str, reason: str) -> Revocation:
    """Record a revocation; one that exists stays as it is and is returned.

    It wins over an approval, a training's word and the operator's setting. Nothing of the package is needed
    but its digest: a revoked package may be gone, or too dangerous to touch.

    Raises:
        BadInputError: nobody is named, no reason, or no SHA-256.
        PackageError: this role may not write revocations; the remedy says who may.
    """
    _check_words(name, "revoked", revoked_by, reason)
    revocation = Revocation(
        sha256=digest,
        name=name,
        revoked_by=revoked_by.strip(),
        revoked_at=_now(),
        reason=reason.strip(),
    )
    written = _write_as_admin(store, REVOCATIONS, revocation, f"revoke {digest} --by NAME --reason TEXT")
    return revocation if written else find_revocation(store, digest) or revocation


def _check_words(name: str, done: str, by: str, reason: str) -> None:
    for what, text in (("by whom", by), ("why", reason)):
        if not text.strip():
            raise BadInputError(
                f"The package {name} is not {done}: nobody said {what}.", "Give a name and a reason."
            )


def _write_as_admin(store: ObjectStore, kind: str, record: Approval | Revocation, command: str) -> bool:
    try:
        return _write_once(store, _uri(kind, record.sha256), record)
    except StoreError as error:
        raise PackageError(
            f"The word on {record.name} was not recorded: {error.problem}",
            "Approvals and revocations are for the operator: set the admin's keys with "
            'eval "$(python -m infra.local env admin)" and run '
            f"python -m tasks.package {command}.",
        ) from error


def is_digest(text: str) -> bool:
    """Whether the text is a SHA-256: 64 hexadecimal digits, lower case."""
    return _DIGEST.fullmatch(text) is not None


def _uri(kind: str, digest: str) -> str:
    if not is_digest(digest):
        raise BadInputError(f"{digest!r} is no SHA-256.", "Give 64 hexadecimal digits.")
    return join(settings().root, kind, f"{digest}.json")


def _write_once(store: ObjectStore, uri: str, record: BaseModel) -> bool:
    content = record.model_dump_json(indent=2).encode() + b"\n"
    try:
        store.put(uri, content, if_none_match=True, content_type="application/json")
    except PreconditionFailedError:
        return False
    return True


def _read(store: ObjectStore, uri: str, model: type[Record], digest: str) -> Record | None:
    try:
        content = store.get(uri)
    except NotFoundError:
        return None
    try:
        record = model.model_validate_json(content)
    except ValidationError as error:
        raise PackageError(f"{uri} is not readable: {error}", "Have the operator look at it.") from error
    if getattr(record, "sha256", None) != digest:
        raise PackageError(
            f"{uri} speaks of another package than its name says.", "Have the operator look at it."
        )
    return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
