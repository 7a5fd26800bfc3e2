"""Packages that people bring: fetched, shown, published under their digest, registered and approved."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import BadInputError, NotFoundError
from tasks.package.dlpk import open_package
from tasks.package.pack import pack_package
from tasks.package.parameters import PackageModelParameters
from tasks.package.publish import publish_package
from tasks.package.tags import registry_tags
from tasks.package.trust import Trust, approve_package, find_trust
from tasks.store import ObjectStore, check_allowed, is_local
from tasks.store.uris import local_path


@dataclass(frozen=True)
class Brought:
    """A published package: its URI, its name in the store and the registry, and tags for the registry."""

    uri: str
    name: str
    digest: str
    tags: dict[str, str]


def local_copy(store: ObjectStore, uri: str, folder: Path) -> Path:
    """The file at ``uri`` on this machine; a local file stays where it is.

    Raises:
        NotFoundError: there is no such object.
    """
    if is_local(uri):
        path = local_path(uri)
        if not path.is_file():
            raise NotFoundError(f"There is no file {uri}.", "Check the path, or give an s3:// address.")
        return path
    name = uri.rstrip("/").rpartition("/")[2]
    path = folder / name
    store.download(uri, path)
    return path


def check_package_address(uri: str) -> None:
    """Refuse an address that a caller may not name, or that is no package's.

    Raises:
        BadInputError: it is neither a .dlpk nor a .zip, or lies outside the allowed roots.
    """
    check_allowed(uri)
    if not uri.lower().endswith((".dlpk", ".zip")):
        raise BadInputError(f"{uri} is not a deep learning package.", "Give the address of a .dlpk or .zip.")


def publish_brought(store: ObjectStore, dlpk: Path, name: str | None) -> Brought:
    """Publish a package that was not made here; it may run only once it is approved.

    Args:
        store: where it goes.
        dlpk: the file.
        name: what it is called here; by default as its ``.emd``, without characters that URIs do not take.

    Raises:
        PackageError: the package breaks its contract, or the name cannot be one.
    """
    with tempfile.TemporaryDirectory(prefix="package-") as scratch:
        package = open_package(dlpk, Path(scratch))
    uri = publish_package(store, dlpk, name=name)
    return Brought(
        uri=uri, name=uri.rsplit("/", 3)[1], digest=package.digest, tags=registry_tags(package.definition)
    )


def approve_brought(
    store: ObjectStore, brought: Brought, *, approved_by: str | None, reason: str | None
) -> Trust | None:
    """Record the approval, where one is asked for; by what the package is trusted after that.

    Raises:
        PackageError: this role may not approve; the package stays published.
    """
    if approved_by is not None:
        approve_package(
            store,
            brought.digest,
            name=brought.name,
            uri=brought.uri,
            approved_by=approved_by,
            reason=reason or "",
        )
    return find_trust(store, brought.digest, brought.name)


def pack_from_addresses(store: ObjectStore, parameters: PackageModelParameters, folder: Path) -> Path:
    """Fetch what a package shall hold and pack it into ``folder``; returns the ``.dlpk``.

    Raises:
        BadInputError, NotFoundError, PackageError: an address cannot be used, or the package would be broken.
    """
    uris = [parameters.definition, parameters.weights, parameters.inference_function]
    for uri in [*(uri for uri in uris if uri), *parameters.extra_files]:
        check_allowed(uri)

    def copied(uri: str | None, place: str) -> Path | None:
        return local_copy(store, uri, folder / place) if uri else None

    path, _ = pack_package(
        name=parameters.output_name,
        definition=local_copy(store, parameters.definition, folder / "definition"),
        weights=copied(parameters.weights, "weights"),
        function=copied(parameters.inference_function, "function"),
        extra=_extra_files(store, parameters.extra_files, folder / "extra"),
        into=folder / "packed",
    )
    return path


def _extra_files(store: ObjectStore, uris: Sequence[str], folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for index, uri in enumerate(uris):
        below = uri.endswith("/")
        addresses = [item.uri for item in store.list(uri)] if below else [uri]
        if not addresses:
            raise NotFoundError(f"There is nothing under {uri} to pack.", "Check the address.")
        # A folder keeps its own name, as modules are imported by it.
        start = len(uri.rstrip("/").rpartition("/")[0]) + 1
        for number, address in enumerate(addresses):
            member = address[start:]
            if member in found:
                raise BadInputError(f"The file {member} is given twice.", "Give every file once.")
            found[member] = local_copy(store, address, folder / f"{index}-{number}")
    return found
