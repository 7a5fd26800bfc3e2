"""MLflow: runs, the registry of packages, lineage. Plain Python around its client, which is imported late.

The server comes from ``MLFLOW_TRACKING_URI``, ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``.
A version in the registry is a pointer: it names a package in the object store, its digest is a tag.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.errors import BadInputError, NotFoundError, TrackingError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]

PACKAGE_TAG = "chipline.package"
DIGEST_TAG = "chipline.sha256"

# MLflow's own defaults retry for minutes; a worker should say soon that its server is away.
_CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))\Z")
# Limits of MLflow's REST API.
_PARAMETERS_PER_REQUEST = 100
_METRICS_PER_REQUEST = 1000
_VALUE_LENGTH = 6000
_TAG_LENGTH = 1000  # of a model version
_DATASET_DIGEST_LENGTH = 36


@dataclass(frozen=True)
class ModelVersion:
    """A version in the registry; ``package`` and ``digest`` are empty where it is no package of ours."""

    name: str
    number: str
    package: str
    digest: str
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """How tools name it."""
        return f"models:/{self.name}/{self.number}"


class Tracker:
    """One MLflow run, made by :meth:`start`; or none at all, made by :meth:`disabled`: then every verb does
    nothing and :attr:`run_url` is None.
    """

    def __init__(self, client: MlflowClient | None, experiment: str, experiment_id: str, run_id: str) -> None:
        self._client = client
        self.experiment = experiment
        self.experiment_id = experiment_id
        self.run_id = run_id

    @classmethod
    def start(
        cls,
        experiment: str,
        run_name: str,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Tracker:
        """Start a run; the experiment is made where it does not exist.

        Raises:
            TrackingError: no server is configured, or it refuses or cannot be reached.
        """
        client = _client()
        with _errors():
            found = client.get_experiment_by_name(experiment)
            experiment_id = found.experiment_id if found else _create_experiment(client, experiment)
            run = client.create_run(experiment_id, run_name=run_name, tags=dict(tags or {}))
        tracker = cls(client, experiment, experiment_id, run.info.run_id)
        if parameters:
            tracker.parameters(parameters)
        return tracker

    @classmethod
    def resume(cls, experiment: str, run_id: str) -> Tracker:
        """Go on with a run that was started before.

        Raises:
            TrackingError: no server is configured, it has no such run, refuses, or cannot be reached.
        """
        client = _client()
        with _errors():
            run = client.get_run(run_id)
            client.update_run(run_id, status="RUNNING")
        return cls(client, experiment, run.info.experiment_id, run_id)

    @classmethod
    def disabled(cls) -> Tracker:
        """A tracker that tracks nothing, by explicit choice."""
        return cls(None, "", "", "")

    @property
    def enabled(self) -> bool:
        """Whether there is a run behind this tracker."""
        return self._client is not None

    @property
    def run_url(self) -> str | None:
        """The run's page in MLflow."""
        if self._client is None:
            return None
        server = os.environ["MLFLOW_TRACKING_URI"].rstrip("/")
        return f"{server}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log parameters; what is not text or a number is written as JSON."""
        if self._client is None:
            return
        from mlflow.entities import Param

        params = [Param(_key(name), _text(value)[:_VALUE_LENGTH]) for name, value in values.items()]
        with _errors():
            for start in range(0, len(params), _PARAMETERS_PER_REQUEST):
                self._client.log_batch(self.run_id, params=params[start : start + _PARAMETERS_PER_REQUEST])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at a step."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_key(name), float(value), now, step) for name, value in values.items()]
        with _errors():
            for start in range(0, len(metrics), _METRICS_PER_REQUEST):
                self._client.log_batch(self.run_id, metrics=metrics[start : start + _METRICS_PER_REQUEST])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        if self._client is None:
            return
        with _errors():
            for name, value in values.items():
                self._client.set_tag(self.run_id, name, value)

    def text(self, text: str, path: str) -> None:
        """Keep a text (HTML, JSON, CSV) as an artifact at ``path``."""
        self._artifact(text.encode(), path)

    def image(self, data: bytes, path: str) -> None:
        """Keep an encoded picture (PNG, JPEG) as an artifact at ``path``."""
        self._artifact(data, path)

    def figure(self, figure: Any, path: str) -> None:
        """Keep a matplotlib figure as an artifact at ``path``, whose suffix chooses the format."""
        if self._client is None:
            return
        with _errors():
            self._client.log_figure(self.run_id, figure, path)

    def _artifact(self, data: bytes, path: str) -> None:
        if self._client is None:
            return
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary, _errors():
            file = Path(temporary) / name
            file.write_bytes(data)
            self._client.log_artifact(self.run_id, str(file), folder or None)

    def dataset(self, name: str, uri: str, digest: str, context: str = "training") -> None:
        """Note what the run was made from: lineage that MLflow shows on the run's page.

        Args:
            name: the training data's name.
            uri: its folder in the store.
            digest: its run key, or the hash of its inventory.
            context: what it was used for.
        """
        if self._client is None:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:_DATASET_DIGEST_LENGTH],
            source_type="s3" if uri.startswith("s3://") else "local",
            source=json.dumps({"uri": uri, "run_key": digest}),
        )
        with _errors():
            self._client.log_inputs(
                self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]
            )

    def logger(self) -> Any:
        """A Lightning logger that writes to this run; False (Lightning's word for none) when disabled."""
        if self._client is None:
            return False
        from pytorch_lightning.loggers import MLFlowLogger

        return MLFlowLogger(
            experiment_name=self.experiment,
            tracking_uri=os.environ["MLFLOW_TRACKING_URI"],
            run_id=self.run_id,
            log_model=False,
        )

    def finish(self, status: Status = "FINISHED") -> None:
        """End the run. Ending it again with another status is fine: the last word counts."""
        if self._client is None:
            return
        with _errors():
            self._client.set_terminated(self.run_id, status)


def register_package(
    name: str,
    package_uri: str,
    digest: str,
    *,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
    alias: str | None = None,
) -> str:
    """Register a published package as a version of ``name`` and return the version's number as text.

    A digest that is registered under the name already keeps its version; the alias moves to it.

    Raises:
        BadInputError: the package does not lie in an object store that other machines can reach.
        TrackingError: MLflow refuses or cannot be reached.
    """
    if not package_uri.startswith("s3://"):
        raise BadInputError(
            f"The package {package_uri} cannot be registered, for other machines cannot reach it.",
            "Publish it to the object store (CHIPLINE_ROOT=s3://…) first.",
        )
    from mlflow.exceptions import MlflowException

    client = _client()
    with _errors():
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = _version_of_digest(client, name, digest)
        if version is None:
            every = {**(tags or {}), PACKAGE_TAG: package_uri, DIGEST_TAG: digest}
            version = str(client.create_model_version(name, package_uri, run_id=run_id, tags=every).version)
        if alias:
            client.set_registered_model_alias(name, alias, version)
    return version


def _version_of_digest(client: MlflowClient, name: str, digest: str) -> str | None:
    quoted = name.replace("'", "''")
    found = client.search_model_versions(f"name = '{quoted}' AND tag.`{DIGEST_TAG}` = '{digest}'")
    return str(min((int(version.version) for version in found), default="")) or None


def resolve_model(uri: str) -> str:
    """The package's URI behind ``models:/name/3`` or ``models:/name@alias``.

    Raises:
        BadInputError: another form, or a version that is no package of ours.
        NotFoundError: no such model, version or alias.
        TrackingError: MLflow refuses or cannot be reached.
    """
    match = _MODEL_URI.match(uri)
    if match is None:
        raise BadInputError(f"{uri!r} names no model version.", "Write models:/name/3 or models:/name@alias.")
    version = find_version(match["name"], match["version"] or match["alias"])
    if version is None:
        raise NotFoundError(
            f"{uri} is not in MLflow's registry, or this user may not read it.",
            "Look at the Models page for the names, versions and aliases that exist.",
        )
    if not version.package:
        raise BadInputError(
            f"{uri} is no deep learning package: it has no tag {PACKAGE_TAG}.",
            "Name a version that train_deep_learning_model or add_package registered.",
        )
    return version.package


def find_version(name: str, which: str) -> ModelVersion | None:
    """A version of a registered model by its number or an alias; None where there is none.

    Raises:
        TrackingError: MLflow refuses or cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    client = _client()
    with _errors():
        try:
            if which.isdigit():
                found = client.get_model_version(name, which)
            else:
                found = client.get_model_version_by_alias(name, which)
        except MlflowException as error:
            # To a user who is no administrator MLflow answers "denied" for what does not exist, too.
            absent = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED")
            if error.error_code not in absent:
                raise
            return None
    tags = {key: str(value) for key, value in found.tags.items()}
    return ModelVersion(name, str(found.version), tags.get(PACKAGE_TAG, ""), tags.get(DIGEST_TAG, ""), tags)


def mark_version(version: ModelVersion, tags: Mapping[str, str], *, alias: str | None = None) -> None:
    """Set tags of a version and, where ``alias`` is given, let it point here.

    Raises:
        TrackingError: MLflow refuses or cannot be reached.
    """
    client = _client()
    with _errors():
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.number, key, value[:_TAG_LENGTH])
        if alias:
            client.set_registered_model_alias(version.name, alias, version.number)


def find_run(experiment: str, tag: str, value: str) -> str | None:
    """The newest run of an experiment that has the tag; None where there is none yet.

    Raises:
        TrackingError: MLflow refuses or cannot be reached.
    """
    client = _client()
    with _errors():
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        runs = client.search_runs(
            [found.experiment_id], f"tags.`{tag}` = '{value}'", max_results=1, order_by=["start_time DESC"]
        )
    return str(runs[0].info.run_id) if runs else None


def tag_run(run_id: str, tags: Mapping[str, str], *, status: Status | None = None) -> None:
    """Set tags of a run that others write to and, where ``status`` is given, end it.

    Raises:
        TrackingError: MLflow refuses or cannot be reached.
    """
    client = _client()
    with _errors():
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
        if status is not None:
            client.set_terminated(run_id, status)


def read_curve(run_id: str, metric: str) -> list[tuple[float, int, float]]:
    """A metric of a run: seconds since the run's start, step, value; in the order they were logged.

    Raises:
        TrackingError: MLflow refuses or cannot be reached.
    """
    client = _client()
    with _errors():
        started = client.get_run(run_id).info.start_time or 0
        history = client.get_metric_history(run_id, _key(metric))
    return [((point.timestamp - started) / 1000, point.step, point.value) for point in history]


def _client() -> MlflowClient:
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise TrackingError(
            "MLFLOW_TRACKING_URI is not set, so there is no MLflow to track in.",
            "Set it (with MLFLOW_TRACKING_USERNAME and …_PASSWORD), or choose Tracker.disabled().",
        )
    for name, value in _CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def _create_experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name))
    except MlflowException as error:
        # Another run made it at the same moment.
        found = client.get_experiment_by_name(name)
        if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(found.experiment_id)


@contextmanager
def _errors() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        where = os.environ.get("MLFLOW_TRACKING_URI")
        if error.error_code in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
            remedy = "Check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        elif error.error_code == "PERMISSION_DENIED":
            remedy = "Use another name, or let an administrator of MLflow grant this user the permission."
        else:
            remedy = "Check that MLflow runs there, and look at its log."
        text = str(error).strip()[:500]
        raise TrackingError(f"MLflow at {where} failed ({text}).", remedy) from error


def _key(name: str) -> str:
    """A name that MLflow takes: a class name may hold other characters."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        return str(value)
