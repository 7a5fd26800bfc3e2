"""Puts a package into the store under its digest."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from tasks.errors import PreconditionFailedError
from tasks.package.dlpk import open_package
from tasks.package.pack import check_name, safe_name
from tasks.package.trust import record_made
from tasks.settings import settings
from tasks.store import ObjectStore, join, set_current

PACKAGES = "packages"


def package_uri(name: str, digest: str) -> str:
    """Where a package of this name and content lies: ``packages/<name>/<sha256>/<name>.dlpk``."""
    return join(settings().root, PACKAGES, name, digest, f"{name}.dlpk")


def publish_package(
    store: ObjectStore, dlpk: Path, *, made_by: str | None = None, name: str | None = None
) -> str:
    """Check and store a package, and make it the current one of its name; returns its URI.

    The same bytes published twice are one object.

    Args:
        store: where it goes.
        dlpk: the package.
        made_by: for trainings only: the URI of the outputs of the run that made it. It vouches for the
            package (``tasks/package/trust.py``); without it the package needs an approval before it runs.
        name: what it is called here; by default as its ``.emd``, without what URIs do not take.

    Raises:
        PackageError: the package breaks its contract; nothing is stored.
    """
    with tempfile.TemporaryDirectory() as folder:
        package = open_package(dlpk, Path(folder))
    called = name or safe_name(package.name)
    check_name(called)
    uri = package_uri(called, package.digest)
    # Under its digest an existing object is this very package.
    with suppress(PreconditionFailedError):
        store.upload(dlpk, uri, if_none_match=True, content_type="application/zip", sha256=package.digest)
    if made_by is not None:
        record_made(store, package.digest, called, made_by)
    set_current(store, PACKAGES, called, uri.rpartition("/")[0])
    return uri
