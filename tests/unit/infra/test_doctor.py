"""What the doctor finds, and what it advises."""

from __future__ import annotations

import json
import sys
import threading
import venv
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from infra.doctor import __main__ as command
from infra.doctor import checks
from infra.doctor.findings import Finding, as_text
from infra.doctor.interpreters import Interpreter, Module, ask
from infra.doctor.services import service_findings, without_password
from tasks.host import Gpu, interpreters
from tasks.settings import StoreAccess, settings


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python with modules of the test's making, and no others."""
    folder = tmp_path / "python"
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for name, text in {
        "fine": "__version__ = '1.2'\nprint('hello, I print')",
        "tensorflow": "import os\nos._exit(11)",
        "keras": "raise OSError('libcudart.so.12: cannot open shared object file')",
        "onnxruntime": "__version__ = '1.9'\ndef get_available_providers(): return ['CUDAExecutionProvider']",
    }.items():
        (site / f"{name}.py").write_text(text)
    return folder / "bin" / "python"


def _states(findings: Iterator[Finding] | list[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


def test_interpreter_is_asked_past_modules_that_print_break_and_crash(python: Path) -> None:
    seen = ask(python, ["fine", "tensorflow", "keras", "absent", "onnxruntime"])
    assert {name: module.state for name, module in seen.modules.items()} == {
        "fine": "good",
        "tensorflow": "broken",
        "keras": "broken",
        "absent": "missing",
        "onnxruntime": "good",
    }
    assert seen.modules["fine"].version == "1.2"
    assert "code 11" in seen.modules["tensorflow"].error
    assert "libcudart" in seen.modules["keras"].error
    assert seen.devices == ["onnxruntime: CUDAExecutionProvider"]
    assert seen.python == ".".join(map(str, sys.version_info[:3]))
    assert not seen.has_pip
    assert not seen.problem


def test_what_cannot_be_run_is_a_problem(tmp_path: Path) -> None:
    seen = ask(tmp_path / "nowhere", ["numpy"])
    (finding,) = checks.interpreter_findings(seen.path, ["TensorFlow"], seen)
    assert finding.state == "problem"
    assert "CHIPLINE_HOST_INTERPRETERS" in finding.remedy


def test_probe_that_hangs_is_cut_off(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 30\n")
    script.chmod(0o755)
    assert "longer than 0.5 s" in ask(script, ["numpy"], timeout_s=0.5).problem


def test_framework_that_the_settings_promise_must_be_there(python: Path) -> None:
    seen = ask(python, ["numpy", "onnxruntime", "keras", "cv2", "arcgis"])
    found = list(checks.interpreter_findings(python, ["ONNX", "Keras"], seen))
    assert _states(found) == {
        "interpreter": "good",
        "numpy": "problem",
        "onnxruntime": "good",
        "keras": "problem",
        "cv2": "note",
    }
    remedies = {finding.name: finding.remedy for finding in found}
    assert remedies["numpy"] == f"Install it: uv pip install --python {python} numpy"
    assert "opencv-python-headless" in remedies["cv2"]


def test_main_environment_is_mended_from_the_locks() -> None:
    seen = Interpreter(Path(sys.executable), "3.11.2", modules={"torch": Module("torch", "missing")})
    (_, torch) = checks.interpreter_findings(seen.path, [], seen)
    assert (torch.state, torch.remedy) == ("problem", "make (builds .venv from the locks)")


def test_frameworks_are_found_where_the_settings_say(
    python: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone, here = Path("/gone/python"), Path(sys.executable)
    monkeypatch.setattr(interpreters, "_ROOT", tmp_path)
    monkeypatch.setattr(settings(), "host_interpreters", {"onnxruntime": python, "TensorFlow": gone})
    seen = {python: ask(python, ["onnxruntime"]), gone: Interpreter(gone), here: Interpreter(here, "3")}
    found = {finding.name: finding for finding in checks.framework_findings(seen)}
    assert found["ONNX"].state == "good"
    assert str(python) in found["ONNX"].detail
    assert found["TensorFlow"].state == "note"
    assert "-m venv" in found["TensorFlow"].remedy
    assert "/gone" not in found["TensorFlow"].remedy
    assert "ONNX" in found["CNTK"].remedy


def test_environment_that_was_built_is_asked_like_one_of_the_settings(
    python: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(interpreters, "_ROOT", tmp_path)
    monkeypatch.setattr(settings(), "host_interpreters", {"Keras": Path("/own/python")})
    built = tmp_path / ".venv-tensorflow" / "bin" / "python"
    built.parent.mkdir(parents=True)
    built.symlink_to(python)
    assert checks.known_interpreters()[built] == ["TensorFlow"]


def test_open_containment_is_a_problem_unless_the_operator_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {
        "files": True,
        "network": False,
        "processes": False,
        "user": "user 7",
        "kernel": [],
        "missing": [],
    }
    monkeypatch.setattr(checks, "containment_report", lambda _: report)
    monkeypatch.setattr(settings(), "allow_uncontained", False)
    states = _states(checks.containment_findings(Path("p")))
    assert (states["files"], states["network"], states["processes"]) == ("good", "problem", "note")
    monkeypatch.setattr(settings(), "allow_uncontained", True)
    assert _states(checks.containment_findings(Path("p")))["network"] == "note"


def test_gpu_that_torch_does_not_see_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "visible_gpus", lambda: [Gpu(0, "GPU-1", "NVIDIA H100")])
    blind, seeing = Interpreter(Path("p")), Interpreter(Path("p"), devices=["torch: NVIDIA H100"])
    assert _states(checks.device_findings(blind))["torch on the GPU"] == "problem"
    assert "torch on the GPU" not in _states(checks.device_findings(seeing))
    monkeypatch.setattr(checks, "visible_gpus", list)
    assert _states(checks.device_findings(blind))["GPU"] == "note"


def test_limit_above_the_memory_that_there_is_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings(), "host_memory_mb", 10**9)
    (memory,) = (item for item in checks.device_findings(Interpreter(Path("p"))) if item.name == "memory")
    assert "CHIPLINE_HOST_MEMORY_MB" in memory.remedy


def test_missing_driver_is_named_with_its_library() -> None:
    drivers = {"rasterio": ["GTiff", "COG", "VRT", "PNG"], "pyogrio": list(checks.VECTOR_DRIVERS)}
    found = list(checks.gdal_findings(Interpreter(Path("/p"), drivers=drivers)))
    (problem,) = (finding for finding in found if finding.state == "problem")
    assert "JP2OpenJPEG" in problem.detail
    assert "GTiff" not in problem.detail
    assert problem.remedy.startswith("uv pip install --python /p --force-reinstall rasterio")
    assert {finding.state for finding in checks.gdal_findings(Interpreter(Path("/p")))} == {"problem"}


class _Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200 if self.headers.get("Authorization") == "Basic dTpw" else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Server) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_services_that_are_configured_must_answer(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(settings(), "root", str(tmp_path))
    right = {
        "MLFLOW_TRACKING_URI": server,
        "MLFLOW_TRACKING_USERNAME": "u",
        "MLFLOW_TRACKING_PASSWORD": "p",
        "PREFECT_API_URL": f"{server}/api",
        "PREFECT_API_AUTH_STRING": "u:p",
    }
    assert _states(service_findings(right)) == {"store": "good", "MLflow": "good", "Prefect": "good"}
    wrong = {**right, "MLFLOW_TRACKING_PASSWORD": "x", "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    found = {finding.name: finding for finding in service_findings(wrong)}
    assert found["MLflow"].state == found["Prefect"].state == "problem"
    assert "password is refused" in found["MLflow"].detail
    assert "does not answer" in found["Prefect"].detail
    assert {finding.state for finding in service_findings({})} == {"good", "note"}


def test_store_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    access = StoreAccess(prefix="s3://b", endpoint_url="http://key:secret@127.0.0.1:1")
    monkeypatch.setattr(settings(), "root", "s3://b")
    monkeypatch.setattr(settings(), "stores", [access])
    (store, *_) = service_findings({})
    assert store.state == "problem"
    assert "secret" not in store.detail


def test_addresses_are_shown_without_passwords() -> None:
    assert without_password("https://me:secret@host:8443/x") == "https://host:8443/x"
    assert without_password(None) == ""


@pytest.mark.parametrize(("state", "code"), [("good", 0), ("note", 0), ("problem", 1)])
def test_exit_code_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    finding = Finding("Devices", "GPU", state, "none", "plug one in")  # type: ignore[arg-type]
    monkeypatch.setattr(command, "examine", lambda: [finding])
    assert command.main(["--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["problems"] == code
    assert document["findings"][0]["remedy"] == "plug one in"
    assert command.main([]) == code
    assert "→ plug one in" in capsys.readouterr().out


def test_text_has_one_heading_per_section() -> None:
    text = as_text(
        [Finding("A", "x", "good"), Finding("A", "y", "problem", "bad", "mend"), Finding("B", "z", "note")]
    )
    assert text.count("A\n") == 1
    assert "1 to mend, 1 not there" in text
