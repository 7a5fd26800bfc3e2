"""The Prefect tasks of ``compute_accuracy`` and ``compare_models``, with their artifacts.

Heavy modules are loaded inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from prefect import task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from tasks.assess.parameters import AccuracyParameters
from tasks.assess.parameters_compare import ComparisonParameters
from tasks.parameters import ModelArgument

if TYPE_CHECKING:
    from tasks.assess.compare import Outcome
    from tasks.assess.contest import Contest
    from tasks.assess.run import AccuracyResult
    from tasks.store import ObjectStore

_LINK_SECONDS = 7 * 24 * 3600
_REPORT_SECONDS = 10.0


@task(name="assess")
def assess(parameters: AccuracyParameters) -> dict[str, Any]:
    """Score the results, publish the tables and show them.

    Returns:
        ``uri`` of the published folder, ``table``, ``data`` and ``report`` in it, ``rows`` with the scores of
        every class, ``already_done``: "true" where an earlier run had published it.
    """
    from tasks.assess.run import DATA, REPORT, TABLE, compute
    from tasks.store import ObjectStore, join

    store = ObjectStore()
    result = compute(store, parameters, {"flow_run": flow_run.get_id()})
    if result.already_done:
        get_run_logger().info("Already done: the same inputs and parameters gave %s", result.folder_uri)
    _leave_artifacts(store, result, parameters)
    return {
        "uri": result.folder_uri,
        "table": join(result.folder_uri, TABLE),
        "data": join(result.folder_uri, DATA),
        "report": join(result.folder_uri, REPORT),
        "rows": result.rows,
        "already_done": str(result.already_done).lower(),
    }


def _leave_artifacts(store: ObjectStore, result: AccuracyResult, parameters: AccuracyParameters) -> None:
    from tasks.assess.report import OBJECT_FIELDS, PIXEL_FIELDS
    from tasks.assess.run import DATA, PDF, REPORT, TABLE
    from tasks.store import join

    for kind, measures in (("objects", OBJECT_FIELDS), ("pixels", PIXEL_FIELDS)):
        rows = [
            row
            for row in result.rows
            if row["Kind"] == kind and row.get("Min_IoU") in (None, parameters.min_iou)
        ]
        if rows:
            create_table_artifact(
                key=f"accuracy-{kind}",
                table=[_line(row, measures) for row in rows],
                description=_note(kind, parameters),
            )
    names = [REPORT, TABLE, DATA] + ([PDF] if parameters.out_accuracy_report == "HTML_AND_PDF" else [])
    links = [f"- [{name}]({store.presign(join(result.folder_uri, name), _LINK_SECONDS)})" for name in names]
    state = "Already done by an earlier run" if result.already_done else "Done"
    create_markdown_artifact(
        key="accuracy-outputs",
        markdown=f"# Accuracy of {parameters.out_accuracy_table}\n\n{state}: `{result.folder_uri}`\n\n"
        + "\n".join(links),
    )
    _leave_picture(result)


def _line(row: dict[str, Any], measures: tuple[str, ...]) -> dict[str, Any]:
    from tasks.assess.report import shown

    counts = ("True_Positive", "False_Positive", "False_Negative", "Truth_Pixels", "Predicted_Pixels")
    return {
        "class": row["Class"],
        **{name: shown(row, name) for name in measures},
        **{name: row[name] for name in counts if name in row},
    }


def _note(kind: str, parameters: AccuracyParameters) -> str:
    level = f"In brackets: {100 * parameters.confidence_level:g} % intervals over blocks of ground."
    return (
        f"Objects at an IoU of at least {parameters.min_iou}. " if kind == "objects" else "Pixels. "
    ) + level


def _leave_picture(result: AccuracyResult) -> None:
    """The area with the most truth, where the objects were assessed in this run."""
    if result.objects is None or not result.extents:
        return
    import base64

    from tasks.assess.picture import LEGEND, picture_of

    areas = list(zip(result.objects.areas, result.extents, strict=True))
    area, info = max(areas, key=lambda pair: int(pair[0].matches.truth_counted.sum()))
    picture = base64.b64encode(picture_of(area, info)).decode("ascii")
    create_image_artifact(
        key="accuracy-picture",
        image_url=f"data:image/jpeg;base64,{picture}",
        description=f"{info.uri} ({LEGEND})",
    )


class PlannedComparison(TypedDict):
    """What the flow needs to know: the tool, packages and names of outputs by role, whether it is over.

    ``contest``: ``tasks.assess.compare.Contest`` as JSON. An output is named by its version, not by its role,
    so that a version that was applied as a challenger need not be applied again as the champion.
    """

    contest: dict[str, Any]
    tool: str
    packages: dict[str, str]
    outputs: dict[str, str]
    over: bool


@task(name="find versions")
def find_versions(parameters: ComparisonParameters) -> PlannedComparison:
    """Look up champion and challenger in the registry."""
    from tasks.assess.contest import find_contest, refuse_learnt_from, with_lineage
    from tasks.store import ObjectStore

    log = get_run_logger()
    contest = find_contest(parameters)
    refuse_learnt_from(ObjectStore(), parameters, with_lineage(ObjectStore(), contest))
    for role, version in contest.versions.items():
        log.info("%s: %s, %s", role, version.uri, version.package)
    if contest.champion is None:
        log.info("%s has no alias %r yet", contest.model, parameters.champion_alias)
    if contest.over:
        log.info("The challenger is the champion: there is nothing to compare")
    return {
        "contest": contest.model_dump(mode="json"),
        "tool": contest.tool if parameters.evaluation_data is None else "",
        "packages": {role: version.package for role, version in contest.versions.items()},
        "outputs": {role: f"{contest.model}_v{version.number}" for role, version in contest.versions.items()},
        "over": contest.over,
    }


@task(name="plan chips")
def plan_on_chips(
    parameters: ComparisonParameters,
    planned: PlannedComparison,
    model_arguments: Sequence[ModelArgument],
    processor_type: str,
) -> dict[str, str]:
    """Say what is applied to which chips.

    Args:
        model_arguments: of the inference functions.
        processor_type: AUTO, CPU or GPU.

    Returns:
        URI of each version's plan, by role.
    """
    from tasks.assess.chip_plan import plan_chips
    from tasks.assess.contest import Contest
    from tasks.store import ObjectStore

    return plan_chips(
        ObjectStore(),
        parameters,
        Contest.model_validate(planned["contest"]),
        arguments=model_arguments,
        processor_type=processor_type,
    )


@task(name="apply to chips")
def run_chips(plan_uri: str) -> None:
    """Apply one version to the chips of the evaluation set, unless that has been done."""
    import time

    from tasks.assess.chip_plan import compute_chips
    from tasks.store import ObjectStore

    log = get_run_logger()
    reported = time.monotonic()

    def progress(done: int, in_all: int) -> None:
        nonlocal reported
        if done == in_all or time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            log.info("%d of %d chips done", done, in_all)

    found = compute_chips(ObjectStore(), plan_uri, progress=progress)
    log.info("%d chips on %s", len(found.chips), found.device)


def chips_done(plan_uri: str) -> bool:
    """Whether a version has been applied to the chips of the evaluation set."""
    from tasks.assess.chip_plan import is_computed
    from tasks.store import ObjectStore

    return is_computed(ObjectStore(), plan_uri)


@task(name="decide")
def compare_and_decide(
    parameters: ComparisonParameters, planned: PlannedComparison, results: Mapping[str, str]
) -> dict[str, str]:
    """Compare the results of both versions, move the alias where the interval says so, and show it all.

    Args:
        results: by role, URI of what the tool made; of chips, of their plan.

    Returns:
        ``champion``: the version that has the alias now; ``moved``: "true" where it moved in this run;
        ``reason``; ``report``, ``table``, ``data``: URIs.
    """
    from tasks.assess.compare import DATA, REPORT, TABLE, compare
    from tasks.assess.contest import Contest, check_champion
    from tasks.store import ObjectStore, join
    from tasks.tracking import find_version, mark_version

    log = get_run_logger()
    store = ObjectStore()
    contest = Contest.model_validate(planned["contest"])
    outcome = compare(store, parameters, contest, results, {"flow_run": flow_run.get_id()})
    if outcome.already_done:
        log.info("Already done: the same results gave %s", outcome.folder_uri)
    decision = outcome.decision
    check_champion(contest, parameters)
    moves = decision.promote and parameters.move_alias
    log.info("%s. The alias %s %s", decision.reason, parameters.champion_alias, _what(outcome, moves))
    challenger = find_version(contest.model, contest.challenger.number)
    if challenger is None:
        raise AssertionError("the challenger was in the registry a moment ago")
    tags = {"chipline.comparison": decision.reason, "chipline.comparison_report": outcome.folder_uri}
    mark_version(challenger, tags, alias=parameters.champion_alias if moves else None)
    if not outcome.already_done:
        _track_comparison(store, parameters, contest, outcome)
    _leave_comparison(store, parameters, contest, outcome, moves=moves)
    holder = contest.challenger if moves or contest.champion is None else contest.champion
    return {
        "champion": holder.uri if moves or contest.champion is not None else "",
        "moved": str(moves).lower(),
        "reason": decision.reason,
        "report": join(outcome.folder_uri, REPORT),
        "table": join(outcome.folder_uri, TABLE),
        "data": join(outcome.folder_uri, DATA),
    }


def _what(outcome: Outcome, moves: bool) -> str:
    if moves:
        return "moves"
    return "would move (move_alias is off)" if outcome.decision.promote else "stays"


def _track_comparison(
    store: ObjectStore, parameters: ComparisonParameters, contest: Contest, outcome: Outcome
) -> None:
    """An MLflow run in the model's experiment: parameters, both versions' values, the evaluation set."""
    from tasks.assess.compare import DATA, REPORT, TABLE
    from tasks.store import join, read_manifest
    from tasks.tracking import Tracker

    manifest = read_manifest(store, outcome.folder_uri)
    if manifest is None:
        raise AssertionError("compare publishes its folder")
    tracker = Tracker.start(
        contest.model,
        "compare " + " and ".join(version.number for version in contest.versions.values()),
        parameters.model_dump(mode="json"),
        {
            "chipline.run_key": manifest.run_key,
            "chipline.outputs": outcome.folder_uri,
            "chipline.decision": outcome.decision.reason,
            **{f"chipline.{role}": version.uri for role, version in contest.versions.items()},
        },
    )
    tracker.dataset(contest.model, parameters.evaluated_on, manifest.run_key, context="evaluation")
    tracker.metrics(
        {
            f"{row['Class']}.{row['Measure']}.{part}": float(value)
            for row in outcome.rows
            for part, value in row.items()
            if part not in ("Class", "Measure") and value is not None
        }
    )
    for name in (REPORT, TABLE, DATA):
        tracker.text(store.get(join(outcome.folder_uri, name)).decode(), name)
    tracker.finish()


def _leave_comparison(
    store: ObjectStore,
    parameters: ComparisonParameters,
    contest: Contest,
    outcome: Outcome,
    *,
    moves: bool,
) -> None:
    from tasks.assess.compare import REPORT, shown_rows
    from tasks.store import join

    create_table_artifact(
        key="comparison",
        table=shown_rows(outcome.rows),
        description="In brackets: "
        f"{100 * parameters.confidence_level:g} % intervals over blocks of ground, drawn alike for both",
    )
    lines = [f"- {role}: `{version.uri}`" for role, version in contest.versions.items()]
    link = store.presign(join(outcome.folder_uri, REPORT), _LINK_SECONDS)
    create_markdown_artifact(
        key="comparison-decision",
        markdown=f"# {contest.model}: the alias {parameters.champion_alias} {_what(outcome, moves)}\n\n"
        f"{outcome.decision.reason}.\n\n" + "\n".join([*lines, f"- [report]({link})"]),
    )
