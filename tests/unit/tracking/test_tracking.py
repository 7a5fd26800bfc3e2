from __future__ import annotations

import subprocess
import sys

import pytest

from tasks.errors import BadInputError, TrackingError
from tasks.tracking import Tracker, register_package, resolve_model


def test_mlflow_is_loaded_late() -> None:
    code = "import sys, tasks.tracking; assert not {'mlflow', 'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_server_tracking_must_be_switched_off_by_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_URI is not set.*Tracker\.disabled"):
        Tracker.start("e", "r", {})
    tracker = Tracker.disabled()
    tracker.parameters({"a": 1})
    tracker.metrics({"a": 1.0}, step=1)
    tracker.text("", "a")
    tracker.image(b"", "a")
    tracker.figure(None, "a")
    tracker.dataset("a", "b", "c")
    tracker.tags({"a": "b"})
    tracker.finish()
    assert (tracker.run_url, tracker.logger(), tracker.enabled) == (None, False, False)


@pytest.mark.parametrize(
    "uri", ["models:/a", "models:/a/latest", "models:/a/b/1", "models:/a@b@c", "s3://a/b"]
)
def test_only_a_version_or_an_alias_names_a_model(uri: str) -> None:
    with pytest.raises(BadInputError, match="models:/name@alias"):
        resolve_model(uri)


def test_a_local_package_is_not_registered() -> None:
    with pytest.raises(BadInputError, match="other machines cannot reach"):
        register_package("a", "/tmp/a.dlpk", "d")
