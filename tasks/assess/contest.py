"""Who meets whom in a comparison, on what, and whether it is fair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.assess.chip_results import KINDS, Kind
from tasks.assess.comparison import CHALLENGER, CHAMPION
from tasks.assess.parameters_compare import ComparisonParameters
from tasks.errors import BadInputError, NotFoundError, RunError
from tasks.imagery import expand_rasters, inspect_raster
from tasks.package.fetch import fetch_package
from tasks.package.tags import TRAINING_DATA_TAG, training_data_of
from tasks.store import ObjectStore, read_manifest
from tasks.tracking import ModelVersion, find_version
from tasks.training_data.address import find_folder

KIND = "outputs/compare_models"

Tool = Literal["detect_objects", "classify_pixels"]
# What applies versions to imagery, by what they give; others are compared on chips only.
_TOOLS: Mapping[Kind, Tool] = {"pixels": "classify_pixels", "objects": "detect_objects"}
_TYPE_TAG = "chipline.type"
_MODEL_TAG = "chipline.model_type"
_FOR_PAIRS = "CHANGEDETECTOR"


class Version(BaseModel):
    """A version that takes part.

    Attributes:
        uri: how tools name it.
        number: in the registry.
        package, digest: its package.
        training_data: manifests of what it learnt from, as far as the registry names them.
        learnt_from: identities of the same.
        pairs: whether it is known to compare two dates.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    number: str
    package: str
    digest: str
    training_data: list[str] = []
    learnt_from: list[str] = []
    pairs: bool = False


class Contest(BaseModel):
    """Who meets whom.

    Attributes:
        model: name in the registry.
        kind: what both give.
        challenger: the version that wants the alias.
        champion: the version that has it; None where none has.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    kind: Kind
    challenger: Version
    champion: Version | None

    @property
    def over(self) -> bool:
        """Whether the challenger is the champion already."""
        return self.champion is not None and self.champion.digest == self.challenger.digest

    @property
    def tool(self) -> Tool:
        """What applies both to imagery.

        Raises:
            BadInputError: nothing does; they are compared on chips.
        """
        if self.kind not in _TOOLS or self.challenger.pairs:
            what = "compares two dates" if self.challenger.pairs else "names the classes of objects"
            raise BadInputError(
                f"{self.challenger.uri} {what}, which compare_models cannot do on imagery.",
                "Give evaluation_data, chips with their truth, in place of input_raster.",
            )
        return _TOOLS[self.kind]

    @property
    def versions(self) -> dict[str, Version]:
        """By role; the champion first."""
        both = {CHAMPION: self.champion, CHALLENGER: self.challenger}
        return {role: found for role, found in both.items() if found is not None}


def find_contest(parameters: ComparisonParameters) -> Contest:
    """Look up both versions.

    Raises:
        NotFoundError: the challenger is not in the registry.
        BadInputError: it is no package, or of a kind that cannot be compared; the two are of two kinds.
    """
    name = parameters.model_name
    challenger = find_version(name, parameters.challenger)
    if challenger is None:
        raise NotFoundError(
            f"The model {name!r} has no version or alias {parameters.challenger!r}, or this user may not "
            "read it.",
            "Look at MLflow's Models page for the names, versions and aliases that exist.",
        )
    champion = find_version(name, parameters.champion_alias)
    kind = _kind_of(challenger)
    if champion is not None and _kind_of(champion) != kind:
        raise BadInputError(
            f"{challenger.uri} is of the kind {challenger.tags[_TYPE_TAG]}, the champion {champion.uri} "
            f"of the kind {champion.tags[_TYPE_TAG]}.",
            "Compare versions of one kind; give models of another kind another name.",
        )
    return Contest(
        model=name,
        kind=kind,
        challenger=_version(challenger),
        champion=_version(champion) if champion is not None else None,
    )


def _kind_of(found: ModelVersion) -> Kind:
    kind = found.tags.get(_TYPE_TAG, "")
    if not found.package or kind not in KINDS:
        raise BadInputError(
            f"{found.uri} is {kind or 'no package of a known kind'}, which compare_models cannot compare.",
            f"It compares packages of {', '.join(KINDS)}.",
        )
    return KINDS[kind]


def _version(found: ModelVersion) -> Version:
    listed = json.loads(found.tags.get(TRAINING_DATA_TAG, "[]"))
    return Version(
        uri=found.uri,
        number=found.number,
        package=found.package,
        digest=found.digest,
        training_data=[str(item["manifest"]) for item in listed if "manifest" in item],
        learnt_from=[str(item["identity"]) for item in listed if "identity" in item],
        pairs=found.tags.get(_MODEL_TAG) == _FOR_PAIRS,
    )


def with_lineage(store: ObjectStore, contest: Contest) -> Contest:
    """The contest with all that the packages say they learnt from, were chosen on, or inherited.

    A tag of the registry holds 1000 characters, and so perhaps not all of it.
    """
    known = {}
    for role, version in contest.versions.items():
        listed = training_data_of(fetch_package(version.package, store).definition)
        manifests = [f"{uri.rstrip('/')}/manifest.json" for uri, _ in listed]
        known[role] = version.model_copy(
            update={
                "training_data": list(dict.fromkeys([*version.training_data, *manifests])),
                "learnt_from": list(dict.fromkeys([*version.learnt_from, *(key for _, key in listed)])),
            }
        )
    return contest.model_copy(update=known)


def refuse_learnt_from(store: ObjectStore, parameters: ComparisonParameters, contest: Contest) -> None:
    """Refuse imagery or chips that a version learnt from, unless a mask says what of it is meant.

    Of chips the mask is that of their export. Only training data that was exported here names its imagery; of
    other data only the same folder is known.

    Raises:
        BadInputError: with the raster or the folder, and the version.
    """
    if parameters.evaluation_data is not None:
        _refuse_learnt_chips(store, parameters.evaluation_data, contest)
    elif not parameters.mask_features:
        rasters = [inspect_raster(uri) for uri in expand_rasters(parameters.input_raster)]
        _refuse_learnt_rasters(store, {info.identity: info.uri for info in rasters}, contest)


def _refuse_learnt_chips(store: ObjectStore, given: str, contest: Contest) -> None:
    data = find_folder(store, given)
    for contestant in contest.versions.values():
        if data.identity in contestant.learnt_from:
            raise BadInputError(
                f"{contestant.uri} learnt from {data.uri}, which the versions are to be compared on.",
                "Name chips of ground that nobody learnt from.",
            )
    manifest = read_manifest(store, data.uri)
    if manifest is not None and not manifest.parameters.get("input_mask_polygons"):
        rasters = {
            item.get("identity"): item["uri"] for item in manifest.inputs if "raster" in item.get("role", "")
        }
        _refuse_learnt_rasters(store, rasters, contest)


def _refuse_learnt_rasters(store: ObjectStore, rasters: Mapping[Any, str], contest: Contest) -> None:
    for contestant in contest.versions.values():
        for address in contestant.training_data:
            manifest = read_manifest(store, address.rsplit("/", 1)[0])
            learnt = {item.get("identity") for item in manifest.inputs} if manifest is not None else set()
            for identity, uri in rasters.items():
                if identity in learnt:
                    raise BadInputError(
                        f"{contestant.uri} learnt from {uri}, which the versions are to be compared on.",
                        "Name other imagery, or bound it to ground that nobody learnt from: by "
                        "mask_features, or chips by input_mask_polygons of their export.",
                    )


def check_champion(contest: Contest, parameters: ComparisonParameters) -> None:
    """Refuse to move an alias that someone else moved during the comparison.

    Raises:
        RunError: the champion is another one now.
    """
    now = find_version(contest.model, parameters.champion_alias)
    before = contest.champion.number if contest.champion is not None else None
    if (now.number if now is not None else None) != before:
        raise RunError(
            f"The champion of {contest.model} changed during the comparison (from version {before} to "
            f"{now.number if now is not None else None}).",
            "Start the run again: it meets the new one.",
        )
