"""The Prefect tasks of the tools for packages. Heavy modules are loaded inside."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact

from tasks.package.parameters import (
    AddPackageParameters,
    InspectPackageParameters,
    PackageModelParameters,
)

if TYPE_CHECKING:
    from tasks.store import ObjectStore

_ALIAS = "current"


@task(name="inspect package")
def inspect_package_file(parameters: InspectPackageParameters) -> dict[str, str]:
    """Leave the card as an artifact; fails with all problems if there are any.

    Returns:
        ``name``, ``sha256``, ``may_run``.
    """
    from tasks.package.bring import check_package_address, local_copy
    from tasks.store import ObjectStore

    check_package_address(parameters.package)
    store = ObjectStore()
    with tempfile.TemporaryDirectory(prefix="package-") as scratch:
        return _show(store, local_copy(store, parameters.package, Path(scratch)))


@task(name="add package")
def add_brought_package(parameters: AddPackageParameters) -> dict[str, str]:
    """Check, show, publish, register and, where it is asked for, approve a package.

    Returns:
        ``package``: its URI; ``sha256``; ``trusted_by``, empty where it still needs an approval;
        ``model``: its version in the registry, where MLflow is there.
    """
    from tasks.package.bring import check_package_address, local_copy
    from tasks.store import ObjectStore

    check_package_address(parameters.package)
    store = ObjectStore()
    with tempfile.TemporaryDirectory(prefix="package-") as scratch:
        dlpk = local_copy(store, parameters.package, Path(scratch))
        _show(store, dlpk)
        return _publish(store, dlpk, parameters)


@task(name="package model")
def pack_foreign_model(parameters: PackageModelParameters) -> dict[str, str]:
    """Pack, check, show, publish, register and, where it is asked for, approve a package.

    Returns:
        As :func:`add_brought_package`.
    """
    from tasks.package.bring import pack_from_addresses
    from tasks.store import ObjectStore

    store = ObjectStore()
    with tempfile.TemporaryDirectory(prefix="package-") as scratch:
        dlpk = pack_from_addresses(store, parameters, Path(scratch))
        _show(store, dlpk)
        return _publish(store, dlpk, parameters)


def _show(store: ObjectStore, dlpk: Path) -> dict[str, str]:
    from tasks.package.card import card_markdown
    from tasks.package.dlpk import raise_problems
    from tasks.package.examine import examine_package
    from tasks.package.trust import trust_text

    examination = examine_package(dlpk)
    may_run = trust_text(store, examination.digest, examination.name or dlpk.stem)
    create_markdown_artifact(key="package-card", markdown=card_markdown(examination, may_run))
    raise_problems(examination.file, examination.problems)
    return {"name": str(examination.name), "sha256": examination.digest, "may_run": may_run}


def _publish(
    store: ObjectStore, dlpk: Path, parameters: AddPackageParameters | PackageModelParameters
) -> dict[str, str]:
    from tasks.package.bring import approve_brought, publish_brought
    from tasks.package.dlpk import file_digest
    from tasks.package.trust import find_trust, refuse_revoked

    log = get_run_logger()
    refuse_revoked(store, file_digest(dlpk), dlpk.stem)
    brought = publish_brought(store, dlpk, parameters.output_name)
    log.info("Published %s", brought.uri)
    result = {"package": brought.uri, "sha256": brought.digest}
    trust = find_trust(store, brought.digest, brought.name)
    if parameters.approver is not None:
        trust = approve_brought(
            store, brought, approved_by=parameters.approver, reason=parameters.approval_reason
        )
    if trust is None:
        log.warning(
            "Nobody vouches for this package, so it does not run here yet. The operator approves it with: "
            "python -m tasks.package approve %s --by NAME --reason TEXT",
            brought.uri,
        )
    else:
        log.info("Trusted: %s", trust.text)
    result["trusted_by"] = trust.text if trust is not None else ""
    if os.environ.get("MLFLOW_TRACKING_URI") and brought.uri.startswith("s3://"):
        from tasks.tracking import register_package

        # A package that may not run yet must not become what models:/<name>@current means.
        version = register_package(
            brought.name,
            brought.uri,
            brought.digest,
            tags=brought.tags,
            alias=_ALIAS if trust is not None else None,
        )
        result["model"] = f"models:/{brought.name}/{version}"
    return result
