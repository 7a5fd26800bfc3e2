"""What services see of the shell that starts them."""

from __future__ import annotations

import pytest

from infra.local.processes import machine_environment


def test_services_get_the_operators_word_and_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    word = {
        "CHIPLINE_HOST_INTERPRETERS": '{"TensorFlow": "/opt/tf/bin/python"}',
        "CHIPLINE_HOST_MEMORY_MB": "900",
    }
    kept_back = (
        "AWS_SECRET_ACCESS_KEY",
        "CHIPLINE_STORES",
        "MLFLOW_TRACKING_PASSWORD",
        "PREFECT_API_AUTH_STRING",
    )
    for name, value in (word | dict.fromkeys(kept_back, "secret")).items():
        monkeypatch.setenv(name, value)
    seen = machine_environment()
    assert word.items() <= seen.items()
    assert "secret" not in seen.values()
