"""What a hostile function tries, from inside."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import HostError
from tasks.host import HostLimits, HostProcess, containment_report, landlock
from tasks.package import Package
from tasks.settings import settings

MakePackage = Callable[..., Package]

ATTEMPTS = """
import json, os, socket, subprocess, sys, ctypes, glob, tempfile
import numpy as np


def tried(action):
    try:
        return repr(action())
    except BaseException as error:
        return "refused " + type(error).__name__


def write(path):
    with open(path, "w") as file:
        file.write("was here")
    return path


def has_needle(path, needle):
    try:
        return needle in open(path, "rb").read()
    except OSError:
        return False


def descriptor(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as line:
        line.settimeout(1)
        line.connect(address)
    return "connected"


def say(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as line:
        return line.sendto(b"from inside", address)


def through_link(secret):
    place = os.path.join(tempfile.gettempdir(), "link")
    os.symlink(secret, place)
    return open(place).read()


def others(host):
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    if host in numbers:
        return numbers
    raise PermissionError(numbers)


class Probe:
    def initialize(self, **kwargs):
        self.targets = json.load(open(os.path.join(os.path.dirname(kwargs["model"]), "targets.json")))

    def getParameterInfo(self):
        return [{"name": "raster", "dataType": "raster"}]

    def getConfiguration(self, **scalars):
        t = self.targets
        return {
            "environment": dict(os.environ),
            "inherited": [place for place in map(descriptor, range(64)) if place],
            "write own": tried(lambda: write(os.path.join(tempfile.gettempdir(), "mine.txt"))),
            "write home": tried(lambda: write(os.path.expanduser("~/mine.txt"))),
            "write package": tried(lambda: write(t["package"] + "/evil.py")),
            "write outside": tried(lambda: write(t["outside"] + "/evil.txt")),
            "read outside": tried(lambda: open(t["secret"]).read()),
            "list root": tried(lambda: os.listdir("/")),
            "read shadow": tried(lambda: open("/etc/shadow").read()),
            "read host environ": tried(lambda: open(f"/proc/{t['host']}/environ", "rb").read()),
            "any environ": tried(lambda: [
                p for p in glob.glob("/proc/[0-9]*/environ") if has_needle(p, t["needle"].encode())]),
            "kill host": tried(lambda: os.kill(t["host"], 0)),
            "tcp": tried(lambda: connect(socket.AF_INET, ("127.0.0.1", t["port"]))),
            "unix": tried(lambda: connect(socket.AF_UNIX, t["unix"])),
            "dns": tried(lambda: socket.getaddrinfo("example.org", 80)),
            "ptrace": tried(lambda: ctypes.CDLL(None, use_errno=True).ptrace(16, t["host"], 0, 0)),
            "new user namespace": tried(lambda: ctypes.CDLL(None).unshare(0x10000000)),
            "shell": tried(lambda: subprocess.run(
                ["/bin/sh", "-c", f"echo x > {t['outside']}/from-shell"], check=True, capture_output=True)),
            "setuid": tried(lambda: os.setuid(0) if os.getuid() else "already"),
            "chown": tried(lambda: os.chown(t["secret"], 0, 0)),
            "home credentials": tried(lambda: open(t["home"] + "/.aws/credentials").read()),
            "home of root": tried(lambda: os.listdir("/root")),
            "through a link": tried(lambda: through_link(t["secret"])),
            "hard link": tried(lambda: os.link(t["secret"], os.path.join(tempfile.gettempdir(), "hard"))),
            "rename": tried(lambda: os.rename(t["victim"], os.path.join(tempfile.gettempdir(), "taken"))),
            "unlink": tried(lambda: os.unlink(t["victim"])),
            "truncate": tried(lambda: os.truncate(t["victim"], 0)),
            "overwrite": tried(lambda: write(t["victim"])),
            "device": tried(lambda: os.mknod(os.path.join(tempfile.gettempdir(), "disk"), 0o60600, 0x800)),
            "shared memory": tried(lambda: open(t["shared"]).read()),
            "host memory": tried(lambda: open(f"/proc/{t['host']}/mem", "rb").read(1)),
            "host files": tried(lambda: [
                os.readlink(p) for p in glob.glob(f"/proc/{t['host']}/fd/*")] or 1 / 0),
            "all processes": tried(lambda: others(t["host"])),
            "udp": tried(lambda: say(socket.AF_INET, ("127.0.0.1", t["port"]))),
            "tcp6": tried(lambda: connect(socket.AF_INET6, ("::1", t["port"]))),
            "packet": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
            "netlink": tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
            "abstract": tried(lambda: connect(socket.AF_UNIX, t["abstract"])),
            "unix datagram": tried(lambda: say(socket.AF_UNIX, t["datagram"])),
            "datagram of a pair": tried(lambda: socket.socketpair(
                socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"from inside", t["datagram"])),
            "read process": tried(lambda: ctypes.CDLL(None).process_vm_readv(t["host"], 0, 0, 0, 0, 0)),
            "keyring": tried(lambda: ctypes.CDLL(None).syscall(250, 0, -4, 1)),
            "bpf": tried(lambda: ctypes.CDLL(None).syscall(321, 0, 0, 0)),
            "mount": tried(lambda: ctypes.CDLL(None).mount(b"none", b"/tmp", b"tmpfs", 0, 0)),
            "other user": tried(lambda: subprocess.run(["su", "-c", "id"], check=True, capture_output=True)),
        }

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": np.zeros((1,) + shape)}
"""


def _attack(make_package: MakePackage, limits: HostLimits, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    secret = outside / "secret.txt"
    secret.write_text("the secret")
    tcp, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    unix.bind(str(outside / "service.sock"))
    unix.listen()
    (outside / "service.sock").chmod(0o777)
    (outside / "home" / ".aws").mkdir(parents=True)
    (outside / "home" / ".aws" / "credentials").write_text("aws_secret_access_key = chipline-test-credential")
    victim = outside / "victim.txt"
    victim.write_text("whole")
    victim.chmod(0o666)
    shared = Path(f"/dev/shm/chipline-test-{os.getpid()}")
    shared.write_text("the supervisor's")
    shared.chmod(0o666)
    datagram, abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)
    datagram.bind(str(outside / "log.sock"))
    (outside / "log.sock").chmod(0o777)
    datagram.setblocking(False)
    abstract.bind(f"\0chipline-test-{os.getpid()}")
    abstract.listen()
    package = make_package(source=ATTEMPTS)
    targets = {
        "home": str(outside / "home"),
        "victim": str(victim),
        "shared": str(shared),
        "datagram": str(outside / "log.sock"),
        "abstract": f"\0chipline-test-{os.getpid()}",
        "package": str(package.folder),
        "outside": str(outside),
        "secret": str(secret),
        "host": os.getpid(),
        "needle": "chipline-test-credential",
        "port": tcp.getsockname()[1],
        "unix": str(outside / "service.sock"),
    }
    (package.folder / "targets.json").write_text(json.dumps(targets))
    try:
        with tcp, unix, datagram, abstract, HostProcess(package, limits=limits) as host:
            assert host.run("updatePixels", np.zeros((1, 4, 4), np.uint8)).shape == (1, 4, 4)
            with pytest.raises(BlockingIOError):
                datagram.recv(100)
            return host.configuration, outside
    finally:
        shared.unlink()


def test_hostile_function_gets_nothing(
    make_package: MakePackage, limits: HostLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "CHIPLINE_STORES",
        "MLFLOW_TRACKING_PASSWORD",
        "PREFECT_API_AUTH_STRING",
    ):
        monkeypatch.setenv(name, "chipline-test-credential")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if landlock.abi() == 0:
        pytest.skip("this kernel has no Landlock")
    result, outside = _attack(make_package, limits, tmp_path)
    environment = result["environment"]
    assert "chipline-test-credential" not in str(environment)
    assert environment["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert not result["write own"].startswith("refused")
    assert not result["write home"].startswith("refused")
    for attempt in (
        "write package",
        "write outside",
        "read outside",
        "list root",
        "read shadow",
        "read host environ",
        "kill host",
        "tcp",
        "unix",
        "dns",
        "shell",
        "chown",
        "home credentials",
        "home of root",
        "through a link",
        "hard link",
        "rename",
        "unlink",
        "truncate",
        "overwrite",
        "device",
        "shared memory",
        "host memory",
        "host files",
        "all processes",
        "udp",
        "tcp6",
        "packet",
        "netlink",
        "abstract",
        "unix datagram",
        "datagram of a pair",
        "other user",
    ):
        assert result[attempt].startswith("refused"), f"{attempt}: {result[attempt]}"
    assert result["any environ"].startswith("refused") or result["any environ"] == "[]"
    for call in ("ptrace", "read process", "keyring", "bpf", "mount"):
        assert result[call] == "-1", call
    assert result["new user namespace"] == "-1"
    assert result["setuid"] == "'already'" or result["setuid"].startswith("refused")
    kept = ["home", "log.sock", "secret.txt", "service.sock", "victim.txt"]
    assert sorted(path.name for path in outside.iterdir()) == kept
    assert (outside / "victim.txt").read_text() == "whole"
    inherited = [name for name in result["inherited"] if "memfd:chipline" not in name]
    # stdin, stdout and stderr, and the line to the host; nothing else of the host's
    assert sum(name.startswith(("pipe:", "socket:", "/dev/null")) for name in inherited) <= 4, inherited


def test_foreign_package_needs_containment_or_the_operators_word(
    make_package: MakePackage, limits: HostLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make_package()
    monkeypatch.setattr(settings(), "allow_uncontained", False)
    monkeypatch.setattr(HostProcess, "_answer", _without_network(HostProcess._answer))
    with pytest.raises(HostError, match=r"(?s)network.*CHIPLINE_ALLOW_UNCONTAINED"):
        HostProcess(package, limits=limits).__enter__()
    with HostProcess(package, foreign=False, limits=limits) as host:
        assert host.containment["network"] is False
    # Weights that are programs are as foreign as a function, whoever made the package.
    with zipfile.ZipFile(package.folder / "net.pt", "w") as archive:
        archive.writestr("net/constants.pkl", b"")
    with pytest.raises(HostError, match=r"carry code \(net.pt: TorchScript\).*network stay open"):
        HostProcess(package, foreign=False, limits=limits).__enter__()
    monkeypatch.setattr(settings(), "allow_uncontained", True)
    with HostProcess(package, limits=limits) as host:
        assert host.containment["network"] is False


def _without_network(original: Callable[..., dict[str, object]]) -> Callable[..., dict[str, object]]:
    def answer(self: HostProcess, event: str) -> dict[str, object]:
        frame = original(self, event)
        if event == "contained":
            frame["report"]["network"] = False  # type: ignore[index]
        return frame

    return answer


def test_host_may_be_started_from_a_thread_that_ends(make_package: MakePackage, limits: HostLimits) -> None:
    body = """
    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": np.zeros((1,) + shape)}
    """
    host = HostProcess(make_package(body), limits=limits)
    starter = threading.Thread(target=host.__enter__)
    starter.start()
    starter.join()
    try:
        assert host.run("updatePixels", np.zeros((1, 4, 4), np.uint8)).shape == (1, 4, 4)
    finally:
        host.close()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no shared memory folder")
def test_a_package_in_shared_memory_is_read_and_not_written(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = """
    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        try:
            open(os.path.join(os.path.dirname(__file__), "left"), "w").close()
        except OSError:
            pass
        return {"output_pixels": np.full((1, 8, 8), 7, np.uint8)}
    """
    made = make_package(body)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        moved = Path(shutil.copytree(made.folder, Path(folder) / "package"))
        with HostProcess(Package(moved, made.definition, made.digest, made.name), limits=limits) as host:
            assert np.all(host.run("updatePixels", np.ones((3, 8, 8), np.uint8)) == 7)
            contained = host.containment
        if contained["files"]:
            assert not (moved / "left").exists()


def test_report_needs_no_package() -> None:
    report = containment_report()
    assert report["environment"] is True
    assert isinstance(report["files"], bool)
    assert report["kernel"] or report["missing"]
    with pytest.raises(HostError, match="cannot be started"):
        containment_report(Path("/nowhere/python"))
