"""The child's environment holds what libraries need and no credentials."""

from __future__ import annotations

from tasks.host.containment import clean_environment


def test_environment_keeps_libraries_and_drops_credentials() -> None:
    given = {
        "PATH": "/usr/bin",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "2",
        "LD_LIBRARY_PATH": "/opt/cuda/lib",
        "HOME": "/home/someone",
        "AWS_SECRET_ACCESS_KEY": "x",
        "CHIPLINE_STORES": "x",
        "MLFLOW_TRACKING_PASSWORD": "x",
        "PREFECT_API_AUTH_STRING": "x",
        "GITHUB_TOKEN": "x",
        "PYTHONPATH": "x",
        "LD_PRELOAD": "x",
        "SSH_AUTH_SOCK": "x",
    }
    environment = clean_environment(given, "/work folder")
    assert "x" not in environment.values()
    assert environment["HOME"] == environment["TMPDIR"] == "/work folder"
    assert environment["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    for name in ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "LD_LIBRARY_PATH"):
        assert environment[name] == given[name]
