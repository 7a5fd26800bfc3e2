"""What a training starts from, settled before it starts: a package to go on with, or weights of the encoder.

A package is code. Of one to go on with only the weights are read, as plain tensors; none of its code runs in
a training. So it must be a package that a training of Chipline built, whose network is built here from the
same parameters; and somebody must vouch for it, as for any package (``tasks/package/trust.py``).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInputError, NotFoundError
from tasks.package.dlpk import file_digest
from tasks.package.fetch import fetch_package
from tasks.package.publish import PACKAGES
from tasks.package.tags import training_data_of
from tasks.settings import settings
from tasks.store import ObjectStore, check_allowed, current, is_local, join
from tasks.store.uris import local_path

if TYPE_CHECKING:
    from tasks.package.dlpk import Package
    from tasks.train.parameters import TrainParameters

_INSTALLED = "package:"


class Origin(BaseModel):
    """A package, or a file of weights.

    Attributes:
        uri: where it lies.
        identity: SHA-256 of a package or of a local file; ETag and size of an object.
        name: for people.
        learnt: address and identity of the training data that a package learnt from or was chosen on, with
            those of the packages that it went on from.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    identity: str
    name: str
    learnt: tuple[tuple[str, str], ...] = ()


def find_package(store: ObjectStore, parameters: TrainParameters) -> Origin | None:
    """The package of ``pretrained_model``, checked against the parameters; None where none is named.

    Raises:
        BadInputError, NotFoundError: no address of a package, or nothing there.
        PackageError: nobody vouches for the package.
    """
    if parameters.pretrained_model is None:
        return None
    uri = _package_uri(store, parameters.pretrained_model.strip())
    package = fetch_package(uri, store)
    check_package(package, parameters)
    learnt = tuple(training_data_of(package.definition))
    return Origin(uri=uri, identity=package.digest, name=package.name, learnt=learnt)


def _package_uri(store: ObjectStore, given: str) -> str:
    if given.startswith("models:/"):
        from tasks.tracking import resolve_model  # loads MLflow

        return resolve_model(given)
    if given.lower().endswith(".emd"):
        raise BadInputError(
            f"{given} is the definition alone; nobody can vouch for loose files.",
            "Name the .dlpk; package_model makes one of a definition, weights and function.",
        )
    if "://" in given or given.startswith("/"):
        check_allowed(given)
        return given
    folder = current(store, PACKAGES, given)
    if folder is None:
        raise NotFoundError(
            f"There is no package of the name {given!r} below {settings().root}/{PACKAGES}.",
            "Give the name of a model trained here, models:/NAME/VERSION, or the address of a .dlpk.",
        )
    return join(folder, f"{given}.dlpk")


def check_package(package: Package, parameters: TrainParameters) -> None:
    """Refuse a package whose weights the trained network cannot take.

    Raises:
        BadInputError: it was not built by a training of Chipline, or holds another model or backbone.
    """
    from tasks.package.build import NETWORK_MODULE, OWN_KEY  # loads torch

    definition = package.definition
    own = isinstance(definition.extras.get(OWN_KEY), dict)
    if not own or definition.configuration_name != NETWORK_MODULE or package.weights_path is None:
        raise BadInputError(
            f"The package {package.name} was not built by a training of Chipline. Its network is code of its "
            "own, which does not run in a training, and its weights fit no network that is built here.",
            "Name a package of train_deep_learning_model, or train anew.",
        )
    held = (definition.model_name or "", str((definition.model_parameters or {}).get("backbone", "")))
    for what, theirs, ours in (
        ("model_type", held[0], parameters.custom_model or parameters.model_type),
        ("backbone_model", held[1], parameters.backbone or held[1]),
    ):
        if theirs.casefold() != ours.casefold():
            raise BadInputError(
                f"The package {package.name} holds {what} {theirs or 'none'}, not {ours}.",
                f"Train with {what} = {theirs}, or go on with another package.",
            )


def find_encoder(store: ObjectStore, parameters: TrainParameters) -> Origin | None:
    """The file of ``encoder_weights``; None where none is named.

    Raises:
        BadInputError, NotFoundError: a wrong address, or nothing there.
    """
    if parameters.encoder_weights is None:
        return None
    given = parameters.encoder_weights.strip()
    if given.startswith(_INSTALLED):
        file = installed_file(given)
    else:
        check_allowed(given)
        if not is_local(given):
            info = store.stat(given)
            identity = f"{info.etag or info.modified.isoformat()}-{info.size}"
            return Origin(uri=given, identity=identity, name=given.rsplit("/", 1)[-1])
        file = local_path(given)
    if not file.is_file():
        raise NotFoundError(f"There is no file of weights at {given}.", "Check encoder_weights.")
    return Origin(uri=given, identity=file_digest(file), name=file.name)


def installed_file(given: str) -> Path:
    """The file that ``package:NAME/PATH`` names: of an installed Python package, of which nothing is run.

    Raises:
        BadInputError: no such form.
        NotFoundError: the package is not installed.
    """
    name, _, path = given.removeprefix(_INSTALLED).partition("/")
    inside = PurePosixPath(path)
    if not name.isidentifier() or not path or inside.is_absolute() or ".." in inside.parts:
        raise BadInputError(
            f"{given!r} names no file of an installed package.", "Write it as package:NAME/PATH/IN/IT.pth."
        )
    found = find_spec(name)
    folders = None if found is None else found.submodule_search_locations
    if not folders:
        raise NotFoundError(
            f"The Python package {name} is not installed here.", "Install it where flows and workers run."
        )
    return Path(next(iter(folders)), *inside.parts)


def local_encoder(store: ObjectStore, origin: Origin, folder: Path) -> Path:
    """The file of an encoder's weights on this machine.

    Raises:
        BadInputError: it is no longer the one that the training was planned with.
    """
    if origin.uri.startswith(_INSTALLED):
        path = installed_file(origin.uri)
    elif is_local(origin.uri):
        path = local_path(origin.uri)
    else:
        path = folder / origin.name
        store.download(origin.uri, path)
        info = store.stat(origin.uri)
        if origin.identity != f"{info.etag or info.modified.isoformat()}-{info.size}":
            raise _changed(origin)
        return path
    if not path.is_file() or file_digest(path) != origin.identity:
        raise _changed(origin)
    return path


def _changed(origin: Origin) -> BadInputError:
    return BadInputError(
        f"The weights at {origin.uri} are not those that the training was planned with.",
        "Put the same file in the same place on every worker, or start the training again.",
    )
