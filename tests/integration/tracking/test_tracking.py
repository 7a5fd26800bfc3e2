from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.errors import BadInputError, NotFoundError, TrackingError
from tasks.tracking import (
    Tracker,
    find_run,
    find_version,
    mark_version,
    read_curve,
    register_package,
    resolve_model,
    tag_run,
)


@pytest.mark.usefixtures("tracked")
def test_a_run_keeps_what_it_is_given(name: str, tmp_path: Path) -> None:
    from matplotlib.figure import Figure
    from mlflow.tracking import MlflowClient

    parameters = {f"p{i}": i for i in range(150)} | {"text": "a", "nested": {"a": [1]}, "long": "x" * 9000}
    tracker = Tracker.start(name, "first", parameters, {"who": "me"})
    tracker.metrics({"iou/Crown (old)": 0.5, "loss": math.nan}, step=3)
    tracker.text("<p>hello</p>", "report/metrics.html")
    tracker.image(b"\x89PNG", "samples/1.png")
    tracker.figure(Figure(), "curve.png")
    tracker.dataset("chips", "s3://b/training-data/chips/k", "ab" * 32)
    tracker.tags({"device": "cpu"})
    tracker.finish()

    client = MlflowClient()
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["p149"] == "149"
    assert run.data.params["nested"] == '{"a": [1]}'
    assert len(run.data.params["long"]) == 6000
    assert run.data.metrics["iou/Crown _old_"] == 0.5
    assert run.data.tags["who"] == "me"
    assert run.data.tags["device"] == "cpu"
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.name == "chips"
    report = client.download_artifacts(tracker.run_id, "report/metrics.html", str(tmp_path))
    assert Path(report).read_text() == "<p>hello</p>"
    assert {item.path for item in client.list_artifacts(tracker.run_id)} == {"report", "samples", "curve.png"}
    assert tracker.run_url is not None
    assert tracker.run_url.endswith(f"/#/experiments/{run.info.experiment_id}/runs/{tracker.run_id}")


@pytest.mark.usefixtures("tracked")
def test_lightnings_logger_writes_to_the_same_run(name: str) -> None:
    from mlflow.tracking import MlflowClient

    tracker = Tracker.start(name, "lightning")
    logger = tracker.logger()
    logger.log_metrics({"loss": 1.5}, step=1)
    logger.finalize("success")
    tracker.finish("FAILED")
    run = MlflowClient().get_run(tracker.run_id)
    assert (run.data.metrics["loss"], run.info.status) == (1.5, "FAILED")


@pytest.mark.usefixtures("tracked")
def test_runs_that_start_at_once_share_the_experiment(name: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        trackers = list(pool.map(lambda i: Tracker.start(name, str(i)), range(4)))
    assert len({tracker.experiment_id for tracker in trackers}) == 1


@pytest.mark.usefixtures("tracked")
def test_a_package_is_registered_once_and_found_again(name: str) -> None:
    run = Tracker.start(name, "with package")
    first = "s3://chipline/packages/crowns/aaa/crowns.dlpk"
    second = "s3://chipline/packages/crowns/bbb/crowns.dlpk"
    assert register_package(name, first, "aaa", run_id=run.run_id, alias="champion") == "1"
    assert register_package(name, second, "bbb", tags={"iou": "0.5"}, alias="newest") == "2"
    assert register_package(name, first, "aaa", alias="newest") == "1"
    assert resolve_model(f"models:/{name}/2") == second
    assert resolve_model(f"models:/{name}@champion") == first
    assert resolve_model(f"models:/{name}@newest") == first


@pytest.mark.usefixtures("tracked")
@pytest.mark.parametrize("uri", ["models:/nothing/1", "models:/nothing@champion"])
def test_what_is_not_registered_is_named(uri: str) -> None:
    with pytest.raises(NotFoundError, match=f"{uri} is not in MLflow's registry"):
        resolve_model(uri)


@pytest.mark.usefixtures("tracked")
def test_a_model_of_others_is_no_package(name: str) -> None:
    from mlflow.tracking import MlflowClient

    MlflowClient().create_registered_model(name)
    MlflowClient().create_model_version(name, "s3://somewhere/model")
    with pytest.raises(BadInputError, match="no deep learning package"):
        resolve_model(f"models:/{name}/1")


def test_a_wrong_password_and_an_absent_server(tracked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_PASSWORD"):
        Tracker.start("trees", "x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    before = time.monotonic()
    with pytest.raises(TrackingError, match="Check that MLflow runs there"):
        Tracker.start("trees", "x")
    assert time.monotonic() - before < 20
    assert tracked


@pytest.mark.usefixtures("tracked")
def test_versions_are_marked_and_curves_of_runs_read(name: str) -> None:
    from mlflow.tracking import MlflowClient

    package = "s3://chipline/packages/crowns/aaa/crowns.dlpk"
    assert find_version(name, "champion") is None
    register_package(name, package, "aaa", tags={"chipline.type": "ObjectDetection"})
    assert find_version(name, "champion") is None
    version = find_version(name, "1")
    assert version is not None
    assert (version.uri, version.package, version.digest) == (f"models:/{name}/1", package, "aaa")
    mark_version(version, {"chipline.comparison": "better" * 400}, alias="champion")
    champion = find_version(name, "champion")
    assert champion is not None
    assert champion.number == "1"
    assert champion.tags["chipline.comparison"].startswith("betterbetter")

    assert find_run(name, "chipline.run_key", "k") is None
    trackers = [Tracker.start(name, f"run {i}", tags={"chipline.run_key": "k"}) for i in range(2)]
    for step, value in enumerate((0.5, 0.25), start=1):
        trackers[1].metrics({"valid_loss": value}, step)
    run = find_run(name, "chipline.run_key", "k")
    assert run == trackers[1].run_id
    curve = read_curve(trackers[1].run_id, "valid_loss")
    assert [(step, value) for _, step, value in curve] == [(1, 0.5), (2, 0.25)]
    assert 0 <= curve[0][0] <= curve[1][0] < 60
    tag_run(trackers[1].run_id, {"chipline.given_up": "worse"}, status="KILLED")
    info = MlflowClient().get_run(trackers[1].run_id)
    assert (info.info.status, info.data.tags["chipline.given_up"]) == ("KILLED", "worse")
