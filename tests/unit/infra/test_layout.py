"""Where a stack lives."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from infra.local.errors import StackError
from infra.local.layout import DEFAULT_PORT_BASE, HOST, Layout, free_port_base, is_free
from infra.local.secrets import ROLES, load_secrets, role_environment


def test_every_port_of_a_stack_is_its_own(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path, DEFAULT_PORT_BASE)
    ports = [port for service in ("s3", "mlflow", "prefect") for port in layout.ports_of(service).values()]
    assert len(ports) == len(set(ports)) == 12
    assert max(ports) < 32_768  # from there on the kernel hands out ports to anybody


@pytest.mark.parametrize("base", ["no", "", "0", "65000"])
def test_a_port_base_that_cannot_be_is_refused(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIPLINE_PORT_BASE", base)
    if base == "":
        assert Layout.from_environment().port_base == DEFAULT_PORT_BASE
        return
    with pytest.raises(StackError, match="CHIPLINE_PORT_BASE"):
        Layout.from_environment()


def test_a_listening_port_is_not_free() -> None:
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        assert not is_free(server.getsockname()[1])
    assert is_free(free_port_base())


def test_home_and_secrets_are_for_the_owner_alone(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path / "home", DEFAULT_PORT_BASE)
    secrets = load_secrets(layout)
    assert stat.S_IMODE(layout.home.stat().st_mode) == 0o700
    assert stat.S_IMODE(layout.secrets_file.stat().st_mode) == 0o600
    assert load_secrets(layout) == secrets


def test_no_role_carries_the_key_of_another(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path / "home", DEFAULT_PORT_BASE)
    secrets = load_secrets(layout)
    for role in ROLES:
        text = " ".join(role_environment(layout, secrets, role).values())
        others = [key.secret_key for name, key in secrets.s3_keys.items() if name != role]
        assert secrets.s3_keys[role].secret_key in text
        assert not any(key in text for key in others)
    assert "PREFECT_API_AUTH_STRING" not in role_environment(layout, secrets, "viewer")
