"""What is looked at, and what is said about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from infra.doctor.findings import Finding, State
from infra.doctor.interpreters import Interpreter, ask
from tasks.errors import HostError
from tasks.host import containment_report, visible_gpus
from tasks.host.interpreters import (
    FRAMEWORKS,
    VARIABLE,
    found_environment,
    framework_of,
    framework_remedy,
    import_remedy,
    install_command,
)
from tasks.settings import settings

# What our own packages, and the engine around them, need in the main environment.
REQUIRED = ("numpy", "torch", "torchvision", "rasterio", "pyogrio", "shapely", "mlflow", "prefect")
# What packages of others import.
OPTIONAL = ("onnxruntime", "tensorflow", "keras", "arcgis", "cv2", "skimage", "PIL")
VECTOR_DRIVERS = ("GPKG", "GeoJSON", "ESRI Shapefile", "FlatGeobuf", "OpenFileGDB")
_FRAMEWORK_MODULES = tuple(dict.fromkeys(name for known in FRAMEWORKS for name in known.modules))
_MENDS_MAIN = "make (builds .venv from the locks)"


def known_interpreters() -> dict[Path, list[str]]:
    """The interpreters in use, each with what it is for: the settings' keys, and frameworks found there."""
    found: dict[Path, list[str]] = {Path(sys.executable): []}
    for key, path in settings().host_interpreters.items():
        found.setdefault(path.expanduser(), []).append(key)
    named = {framework_of(key) for key in settings().host_interpreters}
    for framework in FRAMEWORKS:
        python = found_environment(framework) if framework not in named else None
        if python is not None:
            found.setdefault(python, []).append(framework.name)
    return found


def interpreter_findings(path: Path, keys: Sequence[str], seen: Interpreter) -> Iterator[Finding]:
    """What is said about one interpreter and its frameworks.

    Args:
        path: the interpreter.
        keys: frameworks (and digests) that the settings give to it; none for the main one.
        seen: what it answered.
    """
    section = f"Python {path}" + (f" for {', '.join(keys)}" if keys else "")
    if not seen.python:
        remedy = f"Correct {VARIABLE}, or make the environment again."
        yield Finding(section, "interpreter", "problem", seen.problem, remedy)
        return
    yield Finding(section, "interpreter", "good", f"Python {seen.python}")
    if seen.problem:
        yield Finding(section, "probe", "problem", seen.problem, "Run the doctor again on an idle machine.")
    is_main = path == Path(sys.executable)
    needed = set(REQUIRED) if is_main else {"numpy"}
    for key in keys:
        framework = framework_of(key)
        needed |= set(framework.modules) if framework is not None else set()
    for module in seen.modules.values():
        if module.state == "good":
            yield Finding(section, module.name, "good", module.version)
            continue
        remedy = import_remedy(module.name, path, has_pip=seen.has_pip)
        if is_main and module.name in REQUIRED:
            remedy = _MENDS_MAIN
        elif module.state == "broken":
            remedy = install_command(path, ["--force-reinstall", module.name], has_pip=seen.has_pip)
        broken = module.state == "broken"
        state: State = "problem" if broken or module.name in needed else "note"
        if state == "note" and module.name in _FRAMEWORK_MODULES:
            continue  # said once, among the frameworks
        yield Finding(section, module.name, state, module.error if broken else "not installed", remedy)


def framework_findings(seen: dict[Path, Interpreter]) -> Iterator[Finding]:
    """Which packages can run here, by framework."""
    configured = {
        known.name: path.expanduser()
        for key, path in settings().host_interpreters.items()
        if (known := framework_of(key)) is not None
    }
    for framework in FRAMEWORKS:
        path = configured.get(framework.name) or found_environment(framework) or Path(sys.executable)
        modules = seen[path].modules
        if all(name in modules and modules[name].state == "good" for name in framework.modules):
            versions = ", ".join(f"{name} {modules[name].version}" for name in framework.modules)
            yield Finding("Packages by framework", framework.name, "good", f"{versions} in {path}")
        else:
            # Into an interpreter that cannot be run nothing can be installed: then it gets a new one.
            into = path if seen[path].python else Path(sys.executable)
            remedy = framework_remedy(framework, into, has_pip=seen[into].has_pip)
            yield Finding("Packages by framework", framework.name, "note", "cannot run here", remedy)
    yield Finding(
        "Packages by framework",
        "CNTK",
        "note",
        "not supported: it ended in 2019",
        "Write the model as ONNX and package that with a function that uses onnxruntime.",
    )


def device_findings(seen: Interpreter) -> Iterator[Finding]:
    """Processors, memory and GPUs, and whether the main environment's torch sees them."""
    section = "Devices"
    yield Finding(section, "processors", "good", str(len(os.sched_getaffinity(0))))
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    gib = 1024**3
    detail = (
        f"{memory.total / gib:.1f} GiB, {memory.available / gib:.1f} available, {swap.total / gib:.1f} swap"
    )
    wanted = settings().host_memory_mb / 1024
    short = wanted > memory.total / gib
    remedy = f"Set CHIPLINE_HOST_MEMORY_MB below what there is (it is {settings().host_memory_mb})."
    yield Finding(section, "memory", "note" if short else "good", detail, remedy if short else "")
    gpus = visible_gpus()
    if not gpus:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f", CUDA_VISIBLE_DEVICES is {hidden!r}" if hidden is not None else ""
        remedy = "For an NVIDIA GPU install its driver (nvidia-smi must list it)."
        yield Finding(section, "GPU", "note", f"none{why}; everything runs on the CPU", remedy)
        return
    for gpu in gpus:
        yield Finding(section, f"GPU {gpu.number}", "good", f"{gpu.name}, {gpu.uuid}")
    yield Finding(section, "driver", "good", _driver_version())
    if not Path("/dev/nvidia-uvm").exists():
        yield Finding(section, "/dev/nvidia-uvm", "problem", "not there", "nvidia-modprobe -u -c=0")
    if not any(device.startswith("torch:") for device in seen.devices):
        remedy = "UV_TORCH_BACKEND=auto make (a PyTorch build for this driver)"
        yield Finding(section, "torch on the GPU", "problem", "torch sees no GPU", remedy)


def _driver_version() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "NVML answers; nvidia-smi is not on the PATH"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not answer: {error}"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else done.stderr.strip()[:200]


def containment_findings(path: Path) -> Iterator[Finding]:
    """What the kernel lets the host take from a function that runs in the interpreter at ``path``."""
    section = f"Containment of foreign code ({path})"
    try:
        report = containment_report(path)
    except HostError as error:
        yield Finding(section, "host", "problem", error.problem, error.remedy)
        return
    used, missing = map(str, report["kernel"]), [str(item) for item in report["missing"]]
    allowed = settings().allow_uncontained
    remedies = {
        "files": "Boot a kernel with Landlock (5.13 or later; lsm=landlock,… on its command line).",
        "network": "Boot a kernel with seccomp, or allow namespaces: sysctl -w "
        "kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0",
        "processes": "sysctl -w kernel.unprivileged_userns_clone=1, or run the workers as root.",
    }
    for what, remedy in remedies.items():
        if report.get(what):
            yield Finding(section, what, "good", "closed")
            continue
        # Without files or network closed, foreign packages are refused (tasks/host/process.py).
        refused = what != "processes" and not allowed
        effect = "; foreign packages are refused" if refused else ""
        yield Finding(section, what, "problem" if refused else "note", f"open{effect}", remedy)
    yield Finding(section, "user", "good", str(report["user"]))
    yield Finding(section, "kernel", "good", ", ".join(used))
    for item in missing:
        yield Finding(section, "kernel", "note", item, "It makes up for it where the lines above say closed.")


def gdal_findings(seen: Interpreter) -> Iterator[Finding]:
    """The GDAL drivers that inputs and outputs need."""
    section = "GDAL drivers"
    wanted = {
        "rasterio": tuple(dict.fromkeys((*settings().gdal_drivers, "GTiff", "COG"))),
        "pyogrio": VECTOR_DRIVERS,
    }
    for library, names in wanted.items():
        if library not in seen.drivers:
            yield Finding(section, library, "problem", "cannot be asked", _MENDS_MAIN)
            continue
        there = set(seen.drivers[library])
        absent = [name for name in names if name not in there]
        present = ", ".join(name for name in names if name in there)
        yield Finding(section, library, "good", present or "none of those that matter")
        if absent:
            command = install_command(seen.path, ["--force-reinstall", library], has_pip=seen.has_pip)
            yield Finding(section, library, "problem", f"without {', '.join(absent)}", f"{command} (a wheel)")


def examine() -> list[Finding]:
    """Everything, in the order in which it is shown."""
    # Services import the store's clients; that is not needed to look at the machine.
    from infra.doctor.services import service_findings

    modules = (*REQUIRED, *OPTIONAL)
    in_packages = tuple(dict.fromkeys(("numpy", *_FRAMEWORK_MODULES, *OPTIONAL)))
    known = known_interpreters()
    seen = {path: ask(path, modules if path == Path(sys.executable) else in_packages) for path in known}
    main = seen[Path(sys.executable)]
    found: list[Finding] = []
    for path, keys in known.items():
        found += interpreter_findings(path, keys, seen[path])
    found += framework_findings(seen)
    found += device_findings(main)
    for path in known:
        if seen[path].python:
            found += containment_findings(path)
    found += gdal_findings(main)
    found += service_findings(os.environ)
    return found
