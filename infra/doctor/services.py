"""Whether the services that this shell is configured for answer, with its own identity."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx

from infra.doctor.findings import Finding
from infra.local.health import client
from tasks.errors import ChiplineError
from tasks.settings import settings

_SECTION = "Services"
_SHELL = f'eval "$({sys.executable} -m infra.local env)", for the local stack (make up boots it)'
_CONNECT_S = 5.0


def service_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Store, MLflow and Prefect: reachable, or not configured here.

    Args:
        environment: this process's variables.
    """
    yield from _store()
    yield _mlflow(environment)
    yield _prefect(environment)


def _store() -> Iterator[Finding]:
    root, stores = settings().root, settings().stores
    if not root.startswith("s3://"):
        if Path(root).is_dir():
            yield Finding(_SECTION, "store", "good", root)
        else:
            remedy = f"mkdir -p {root}, or correct CHIPLINE_ROOT."
            yield Finding(_SECTION, "store", "problem", f"{root} is no folder", remedy)
        return
    if not stores:
        yield Finding(_SECTION, "store", "note", f"{root}: no CHIPLINE_STORES in this shell", _SHELL)
        return
    for access in stores:
        where = f"{access.prefix} at {without_password(access.endpoint_url) or 'AWS'}"
        problem = _connection(access.endpoint_url) or _listing(access.prefix)
        remedy = "Check endpoint and keys in CHIPLINE_STORES; make status tells about the local stack."
        if problem:
            yield Finding(_SECTION, "store", "problem", f"{where}: {problem}", remedy)
        else:
            yield Finding(_SECTION, "store", "good", where)


def _connection(url: str | None) -> str:
    if url is None:
        return ""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_S).close()
    except OSError as error:
        return f"does not answer ({error})"
    return ""


def _listing(prefix: str) -> str:
    from tasks.store import ObjectStore

    try:
        next(iter(ObjectStore().list(prefix.rstrip("/") + "/")), None)
    except ChiplineError as error:
        return error.problem
    return ""


def _mlflow(environment: Mapping[str, str]) -> Finding:
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return Finding(_SECTION, "MLflow", "note", "no MLFLOW_TRACKING_URI in this shell", _SHELL)
    if not uri.startswith(("http://", "https://")):
        return Finding(_SECTION, "MLflow", "good", f"{without_password(uri)} (no server)")
    user = environment.get("MLFLOW_TRACKING_USERNAME")
    auth = f"{user}:{environment.get('MLFLOW_TRACKING_PASSWORD', '')}" if user else None
    remedy = "Check MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
    problem = _asked(uri, auth, "/api/2.0/mlflow/experiments/search", {"max_results": 1})
    return _answer("MLflow", uri, problem, remedy)


def _prefect(environment: Mapping[str, str]) -> Finding:
    url = environment.get("PREFECT_API_URL", "")
    if not url:
        return Finding(_SECTION, "Prefect", "note", "no PREFECT_API_URL in this shell", _SHELL)
    auth = environment.get("PREFECT_API_AUTH_STRING")
    remedy = "Check PREFECT_API_URL and PREFECT_API_AUTH_STRING."
    return _answer("Prefect", url, _asked(url, auth, "/flows/count", {}), remedy)


def _asked(url: str, auth: str | None, path: str, body: dict[str, int]) -> str:
    try:
        with client(url.rstrip("/"), auth) as http:
            code = http.post(path, json=body).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"does not answer ({type(error).__name__}: {error})"
    return (
        "" if code == 200 else f"answers {code}" + (", the password is refused" if code in (401, 403) else "")
    )


def _answer(name: str, url: str, problem: str, remedy: str) -> Finding:
    shown = without_password(url)
    if problem:
        return Finding(_SECTION, name, "problem", f"{shown}: {problem}", remedy)
    return Finding(_SECTION, name, "good", shown)


def without_password(url: str | None) -> str:
    """The address without the user and password that may stand in it."""
    parts = urlsplit(url or "")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
