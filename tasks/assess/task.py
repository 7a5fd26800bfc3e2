"""The Prefect task of ``compute_accuracy``, with its artifacts. Heavy modules are loaded inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from tasks.assess.parameters import AccuracyParameters

if TYPE_CHECKING:
    from tasks.assess.run import AccuracyResult
    from tasks.store import ObjectStore

_LINK_SECONDS = 7 * 24 * 3600


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
    from tasks.assess.run import DATA, REPORT, TABLE
    from tasks.store import join

    for kind, measures in (
        ("objects", ("Precision", "Recall", "F1_Score", "AP")),
        ("pixels", ("IoU", "F1_Score", "Precision", "Recall")),
    ):
        rows = [row for row in result.rows if row["Kind"] == kind]
        if rows:
            create_table_artifact(
                key=f"accuracy-{kind}",
                table=[_line(row, measures) for row in rows],
                description=_note(kind, parameters),
            )
    links = [
        f"- [{name}]({store.presign(join(result.folder_uri, name), _LINK_SECONDS)})"
        for name in (REPORT, TABLE, DATA)
    ]
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
