"""What the registry says about a package's version: tags from its definition and from its training data."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tasks.package.definition import ModelDefinition
from tasks.package.dlpk import open_package
from tasks.package.examine import definition_rows

TRAINING_DATA_TAG = "chipline.training_data"
_TAG_LENGTH = 1000  # MLflow refuses longer values
_CARD_TAGS = ("type", "framework", "bands", "cell size")


def registry_tags(definition: ModelDefinition) -> dict[str, str]:
    """Type, framework, classes, bands and cell size of a package; the registry adds address and digest."""
    rows = dict(definition_rows(definition))
    tags = {f"chipline.{key.replace(' ', '_')}": rows[key] for key in _CARD_TAGS if key in rows}
    tags["chipline.classes"] = ", ".join(f"{item.value} {item.name}" for item in definition.classes or [])
    return {key: value[:_TAG_LENGTH] for key, value in tags.items() if value}


def package_tags(dlpk: Path) -> dict[str, str]:
    """:func:`registry_tags` of a sound package's file."""
    with tempfile.TemporaryDirectory(prefix="package-") as scratch:
        return registry_tags(open_package(dlpk, Path(scratch)).definition)


def lineage_tags(inputs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What a package was trained on, for its version: JSON of the manifests' addresses and identities.

    Args:
        inputs: address and identity (run key, or hash of the inventory) of each training data folder.
    """
    listed = [{"manifest": f"{uri.rstrip('/')}/manifest.json", "identity": key} for uri, key in inputs]
    shown = len(listed)
    while len(text := json.dumps(_with_count(listed, shown))) > _TAG_LENGTH and shown:
        shown -= 1  # the run behind the version names them all
    return {TRAINING_DATA_TAG: text}


def training_data_of(definition: ModelDefinition) -> list[tuple[str, str]]:
    """Address and identity of what a package built here learnt from or was chosen on, its ancestors' too.

    Empty for packages from elsewhere, and for those of versions that did not write it.
    """
    listed = definition.training_metrics.get("training_data")
    if not isinstance(listed, list):
        return []
    return [
        (str(item["uri"]), str(item["identity"]))
        for item in listed
        if isinstance(item, dict) and {"uri", "identity"} <= set(item)
    ]


def _with_count(listed: list[dict[str, str]], shown: int) -> list[dict[str, str]]:
    left = len(listed) - shown
    return [*listed[:shown], {"and": f"{left} more"}] if left else listed
