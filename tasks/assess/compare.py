"""The whole of ``compare_models`` but the inference: who meets whom, the comparison, the published folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.assess.chip_plan import load_results
from tasks.assess.chip_results import Kind
from tasks.assess.comparison import DIFFERENCE, Compared, compare_objects, compare_pixels
from tasks.assess.comparison_chips import compare_chips
from tasks.assess.contest import KIND, Contest
from tasks.assess.decision import Decision, decide, first_champion
from tasks.assess.inputs import vector_files
from tasks.assess.parameters_compare import ComparisonParameters, Measure
from tasks.assess.report import FIELDS, page
from tasks.assess.run import folder_or_raster
from tasks.assess.tables import to_csv
from tasks.errors import BadInputError
from tasks.imagery import RasterInfo, expand_rasters, inspect_raster
from tasks.imagery.identity import identity_of_files, on_record
from tasks.labels.vector import split_layer
from tasks.store import (
    Manifest,
    ObjectStore,
    Publication,
    check_allowed,
    join,
    output_folder,
    read_manifest,
    run_key,
    set_current,
)
from tasks.training_data.address import find_folder

TABLE, DATA, REPORT = "comparison.csv", "comparison.json", "report.html"
# Bumped by hand when the same inputs would give other numbers.
SEMANTICS = 1
_USUAL: Mapping[Kind, Measure] = {"objects": "AP", "pixels": "IOU", "labels": "F1_SCORE"}


class Outcome(BaseModel):
    """A published comparison."""

    model_config = ConfigDict(frozen=True)

    folder_uri: str
    decision: Decision
    rows: list[dict[str, Any]]
    already_done: bool


def compare(
    store: ObjectStore,
    parameters: ComparisonParameters,
    contest: Contest,
    results: Mapping[str, str],
    provenance: Mapping[str, Any] | None = None,
) -> Outcome:
    """Score the results of both versions, decide, and publish; the same results are compared once.

    Args:
        results: by role, URI of what the tool made; of chips, of the plan by which they were computed.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    named = expand_rasters(parameters.input_raster) if parameters.input_raster else []
    rasters = [inspect_raster(uri) for uri in named]
    inputs = _identities(store, parameters, rasters)
    shown = on_record(parameters.model_dump(mode="json"))
    decides = {key: value for key, value in shown.items() if key != "move_alias"}
    key = run_key(
        {
            "semantics": SEMANTICS,
            "parameters": decides,
            "inputs": inputs,
            "results": dict(results),
            "packages": {role: item.digest for role, item in contest.versions.items()},
        }
    )
    folder = output_folder(KIND, contest.model, key)
    if read_manifest(store, folder) is not None:
        content = json.loads(store.get(join(folder, DATA)))
        set_current(store, KIND, contest.model, folder)
        decision = Decision.model_validate(content["decision"])
        return Outcome(folder_uri=folder, decision=decision, rows=content["rows"], already_done=True)

    compared = _compared(store, parameters, contest, results, rasters)
    decision = _decided(compared, parameters, contest)
    rows = rows_of(compared)
    content = {
        "model": contest.model,
        "versions": {role: item.model_dump() for role, item in contest.versions.items()},
        "decision": decision.model_dump(),
        "blocks": compared.blocks,
        "rows": rows,
    }
    publication = Publication(store, folder)
    html = _page(content, shown)
    files = [
        publication.put_file(TABLE, to_csv(rows), "text/csv"),
        publication.put_file(
            DATA, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(), "application/json"
        ),
        publication.put_file(REPORT, html.encode(), "text/html"),
    ]
    publication.finish(
        Manifest(
            kind=KIND,
            name=contest.model,
            run_key=key,
            parameters=shown,
            inputs=[*inputs, *({"role": role, "uri": uri} for role, uri in results.items())],
            versions={"chipline": version("chipline"), "semantics": SEMANTICS},
            parts=[publication.put_part("all", files)],
            details={"decision": decision.model_dump(), "versions": content["versions"]},
            provenance={
                "started": started,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                **(provenance or {}),
            },
        )
    )
    set_current(store, KIND, contest.model, folder)
    return Outcome(folder_uri=folder, decision=decision, rows=rows, already_done=False)


def _identities(
    store: ObjectStore, parameters: ComparisonParameters, rasters: list[RasterInfo]
) -> list[dict[str, Any]]:
    if parameters.evaluation_data is not None:
        data = find_folder(store, parameters.evaluation_data)
        return [{"role": "evaluation data", "uri": data.uri, "identity": data.identity}]
    vectors = [parameters.truth]
    vectors += [parameters.mask_features] if parameters.mask_features else []
    for uri in (*vectors, *(info.uri for info in rasters)):
        check_allowed(split_layer(uri)[0])
    return [{"uri": uri, "identity": identity_of_files([split_layer(uri)[0]], store)} for uri in vectors] + [
        {"uri": info.uri, "identity": info.identity} for info in rasters
    ]


def _compared(
    store: ObjectStore,
    parameters: ComparisonParameters,
    contest: Contest,
    results: Mapping[str, str],
    rasters: list[RasterInfo],
) -> Compared:
    if parameters.evaluation_data is not None:
        return compare_chips({role: load_results(store, uri) for role, uri in results.items()}, parameters)
    if contest.kind == "objects":
        layers = {role: vector_files(store, uri)[0] for role, uri in results.items()}
        return compare_objects(layers, rasters, parameters)
    classified = {
        role: [inspect_raster(found) for found in expand_rasters([folder_or_raster(store, uri)])]
        for role, uri in results.items()
    }
    return compare_pixels(classified, rasters, parameters)


def _decided(compared: Compared, parameters: ComparisonParameters, contest: Contest) -> Decision:
    measure = parameters.measure
    if measure == "AUTO":
        measure = _USUAL[contest.kind]
    by_field = {FIELDS[name].upper(): name for name in compared.measures}
    if measure not in by_field:
        raise BadInputError(
            f"{measure} is not measured of {contest.kind}.", f"Choose AUTO or {', '.join(by_field)}."
        )
    if contest.champion is None:
        return first_champion(measure)
    return decide(
        measure,
        *compared.of(DIFFERENCE, by_field[measure]),
        least_gain=parameters.least_gain,
        level=parameters.confidence_level,
    )


def rows_of(compared: Compared) -> list[dict[str, Any]]:
    """One row per class (and ``All``) and measure, with both versions, their difference and intervals."""
    rows = []
    for place, name in enumerate(compared.names):
        for column, measure in enumerate(compared.measures):
            row: dict[str, Any] = {"Class": name, "Measure": FIELDS[measure]}
            for role in compared.values:
                for ending, numbers in (
                    ("", compared.values),
                    ("_Low", compared.low),
                    ("_High", compared.high),
                ):
                    row[role.capitalize() + ending] = _number(float(numbers[role][place, column]))
            rows.append(row)
    return rows


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def shown_rows(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows as a person reads them: ``0.53 (0.41 to 0.62)``."""
    parts = [name for name in ("Champion", "Challenger", "Difference") if name in rows[0]]
    return [
        {
            "class": row["Class"],
            "measure": row["Measure"],
            **{part.lower(): _told(row, part) for part in parts},
        }
        for row in rows
    ]


def _told(row: Mapping[str, Any], part: str) -> str:
    value, low, high = row[part], row[f"{part}_Low"], row[f"{part}_High"]
    if value is None:
        return "not defined"
    sign = "+" if part == "Difference" else ""
    ends = "" if low is None or high is None else f" ({low:{sign}.3f} to {high:{sign}.3f})"
    return f"{value:{sign}.3f}{ends}"


def _page(content: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    rows = shown_rows(content["rows"])
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    lines = "".join("<tr>" + "".join(f"<td>{escape(v)}</td>" for v in row.values()) + "</tr>" for row in rows)
    versions = "".join(
        f"<li>{escape(role)}: {escape(item['uri'])} (SHA-256 {escape(item['digest'])})</li>"
        for role, item in content["versions"].items()
    )
    level = f"{100 * float(parameters['confidence_level']):g} %"
    verdict = "The alias moves" if content["decision"]["promote"] else "The alias stays"
    body = (
        f"<p><b>{verdict}.</b> {escape(content['decision']['reason'])}.</p><ul>{versions}</ul>"
        f"<table><tr>{head}</tr>{lines}</table>"
        f"<p>In brackets: {level} intervals over {content['blocks']} blocks of ground, the same draws for "
        "both versions and for their difference.</p>"
    )
    return page(f"Versions of {content['model']}", body, parameters)
