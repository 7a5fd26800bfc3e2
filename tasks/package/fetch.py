"""Brings a package to this machine and decides whether it may run here. A package is code."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path

from tasks.errors import BadInputError, NotFoundError, PackageError
from tasks.package.dlpk import Package, open_package, unpacked_package
from tasks.package.publish import PACKAGES
from tasks.package.trust import Trust, find_trust
from tasks.settings import settings
from tasks.store import ObjectStore, is_local, join
from tasks.store.uris import local_path

_DIGEST = re.compile(r"[0-9a-f]{64}")


def fetch_package(model: str, store: ObjectStore) -> Package:
    """The package at ``model``, checked, trusted, and unpacked once per digest in the local cache.

    A published package that the cache holds is not downloaded again.

    Args:
        model: URI or local path of a ``.dlpk`` (or a ``.zip`` with the same content).
        store: where it is read from.

    Raises:
        BadInputError: ``model`` is no address of a package.
        NotFoundError: there is no such object.
        PackageError: the package breaks its contract, or is not trusted here.
    """
    if not model.lower().rstrip("/").endswith((".dlpk", ".zip")):
        raise BadInputError(
            f"The model {model!r} is not a deep learning package.",
            "Give the address of a .dlpk, such as the one that train_deep_learning_model ends with.",
        )
    cache = settings().cache / PACKAGES
    published = published_digest(model)
    if published is not None:
        package = unpacked_package(published, cache)
        if package is not None and store.exists(model):
            return replace(package, trust=check_trust(package, model, store))
    package = _opened(model, store, cache)
    return replace(package, trust=check_trust(package, model, store))


def _opened(model: str, store: ObjectStore, cache: Path) -> Package:
    if is_local(model):
        path = local_path(model)
        if not path.is_file():
            raise NotFoundError(f"There is no package {model}.", "Check the path, or give an s3:// address.")
        return open_package(path, cache)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        path = Path(folder) / model.rstrip("/").rpartition("/")[2]
        store.download(model, path)
        return open_package(path, cache)


def published_digest(uri: str) -> str | None:
    """The digest in the address of a package that was published here; None for any other address."""
    root = join(settings().root, PACKAGES) + "/"
    if not uri.startswith(root):
        return None
    parts = uri[len(root) :].split("/")
    if len(parts) == 3 and _DIGEST.fullmatch(parts[1]) and parts[2] == f"{parts[0]}.dlpk":
        return parts[1]
    return None


def check_trust(package: Package, uri: str, store: ObjectStore) -> Trust:
    """By what a package is trusted here.

    Raises:
        PackageError: nothing vouches for it; the remedy names its digest.
    """
    published = published_digest(uri)
    if published not in (None, package.digest):
        raise PackageError(
            f"The package {uri} is not the one that was published there: its SHA-256 is {package.digest}.",
            "Publish the package again; someone has overwritten it.",
        )
    trust = find_trust(store, package.digest, package.name)
    if trust is None:
        raise PackageError(
            f"The package {package.name} was neither made nor approved here, and a package is code.",
            "If you trust where it comes from, have the operator approve it: "
            f"python -m tasks.package approve {uri} --by NAME --reason TEXT, "
            f"or add its SHA-256 to CHIPLINE_APPROVED_PACKAGES: {package.digest}.",
        )
    return trust
