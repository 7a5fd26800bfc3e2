"""Puts a package into the store under its digest."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from tasks.errors import PreconditionFailedError
from tasks.package.dlpk import open_package
from tasks.settings import settings
from tasks.store import ObjectStore, join, set_current

PACKAGES = "packages"


def package_uri(name: str, digest: str) -> str:
    """Where a package of this name and content lies: ``packages/<name>/<sha256>/<name>.dlpk``."""
    return join(settings().root, PACKAGES, name, digest, f"{name}.dlpk")


def publish_package(store: ObjectStore, dlpk: Path) -> str:
    """Check and store a package, and make it the current one of its name; returns its URI.

    The same bytes published twice are one object.

    Raises:
        PackageError: the package breaks its contract; nothing is stored.
    """
    with tempfile.TemporaryDirectory() as folder:
        package = open_package(dlpk, Path(folder))
    uri = package_uri(package.name, package.digest)
    # Under its digest an existing object is this very package.
    with suppress(PreconditionFailedError):
        store.upload(dlpk, uri, if_none_match=True, content_type="application/zip", sha256=package.digest)
    set_current(store, PACKAGES, package.name, uri.rpartition("/")[0])
    return uri
