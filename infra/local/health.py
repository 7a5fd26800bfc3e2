"""Whether a service really serves. Each check returns what is wrong, or nothing."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from infra.local.layout import BUCKET, MLFLOW_BUCKET, Layout
from infra.local.secrets import MLFLOW_USERS, Secrets

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_TIMEOUT_S = 5.0
_LOOK_AT_LEAST_S = 120.0


class _PatientTransport(httpx.HTTPTransport):
    """Asks again while a server says 503: Prefect does when two writers met in its SQLite database."""

    def __init__(self, patience_s: float) -> None:
        # Servers close a connection that waits for seconds: a busy machine would send on one that is closed.
        super().__init__(limits=httpx.Limits(max_keepalive_connections=0))
        self.patience_s = patience_s

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        end = time.monotonic() + self.patience_s
        while True:
            answer = super().handle_request(request)
            if answer.status_code != 503 or time.monotonic() > end:
                return answer
            answer.close()
            time.sleep(0.3)


def client(url: str, auth: str | None = None, *, patience_s: float = 0.0) -> httpx.Client:
    """An HTTP client for one of our servers, past any proxy.

    Args:
        url: where the server is.
        auth: ``user:password``.
        patience_s: how long to ask again when the server says that it is busy (503).
    """
    user, _, password = (auth or "").partition(":")
    return httpx.Client(
        base_url=url,
        auth=httpx.BasicAuth(user, password) if auth else None,
        timeout=max(_TIMEOUT_S, patience_s),
        trust_env=False,
        transport=_PatientTransport(patience_s),
    )


def s3_client(layout: Layout, access_key: str, secret_key: str) -> S3Client:
    """A boto3 client with short patience."""
    import boto3
    from botocore.config import Config

    config = Config(
        s3={"addressing_style": "path"},
        retries={"total_max_attempts": 1},
        connect_timeout=2,
        read_timeout=_TIMEOUT_S,
        proxies={},
    )
    return boto3.client(
        "s3",
        endpoint_url=layout.s3_url,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=config,
    )


def object_store(layout: Layout, keys: Secrets) -> str | None:
    """Buckets are there (made when missing), and what is put can be got."""
    from botocore.exceptions import BotoCoreError, ClientError

    key = keys.s3_keys["admin"]
    try:
        s3 = s3_client(layout, key.access_key, key.secret_key)
        present = {bucket.get("Name") for bucket in s3.list_buckets().get("Buckets", [])}
        for bucket in (BUCKET, MLFLOW_BUCKET):
            if bucket not in present:
                s3.create_bucket(Bucket=bucket)
        probe = str(time.time_ns()).encode()
        s3.put_object(Bucket=BUCKET, Key="health/probe", Body=probe)
        if s3.get_object(Bucket=BUCKET, Key="health/probe")["Body"].read() != probe:
            return "an object came back changed"
    except (BotoCoreError, ClientError) as error:
        return str(error)
    return None


def mlflow(layout: Layout, keys: Secrets) -> str | None:
    """An authenticated search answers, every role's user is there, an artifact goes through to S3."""
    admin = f"admin:{keys.mlflow_passwords['admin']}"
    try:
        with client(layout.mlflow_url, admin) as http:
            search = http.post("/api/2.0/mlflow/experiments/search", json={"max_results": 1})
            if search.status_code != 200:
                return f"a search was answered with {search.status_code}"
            for user in sorted(set(MLFLOW_USERS.values()) - {"admin"}):
                problem = _ensure_mlflow_user(http, user, keys.mlflow_passwords[user])
                if problem:
                    return problem
            artifact = http.put("/api/2.0/mlflow-artifacts/artifacts/health/probe", content=b"probe")
            if artifact.status_code != 200:
                return f"an artifact was answered with {artifact.status_code}"
    except httpx.HTTPError as error:
        return _reason(error)
    return None


def _ensure_mlflow_user(http: httpx.Client, user: str, password: str) -> str | None:
    seen = http.get("/api/2.0/mlflow/users/get", params={"username": user})
    if seen.status_code == 200:
        return None
    made = http.post("/api/2.0/mlflow/users/create", json={"username": user, "password": password})
    return None if made.status_code == 200 else f"the user {user} could not be made: {made.text[:200]}"


def prefect(layout: Layout, keys: Secrets) -> str | None:
    """The API answers with its key, and its database works."""
    try:
        with client(f"{layout.prefect_url}/api", keys.prefect_auth_string) as http:
            for path in ("/health", "/ready"):
                answer = http.get(path)
                if answer.status_code != 200:
                    return f"{path} was answered with {answer.status_code}"
    except httpx.HTTPError as error:
        return _reason(error)
    return None


def worker(layout: Layout, keys: Secrets, pool: str, name: str, started: float) -> str | None:
    """The server hears the worker, and not just an earlier one of the same name."""
    try:
        with client(f"{layout.prefect_url}/api", keys.prefect_auth_string) as http:
            answer = http.post(f"/work_pools/{pool}/workers/filter", json={})
            if answer.status_code != 200:
                return f"the pool {pool} was answered with {answer.status_code}"
            found: list[dict[str, Any]] = answer.json()
    except httpx.HTTPError as error:
        return _reason(error)
    for item in found:
        heard = datetime.fromisoformat(item["last_heartbeat_time"]).timestamp()
        if item["name"] == name and item["status"] == "ONLINE" and heard > started:
            return None
    return "the server does not hear it"


def dead_runs(looked: Path, started: float) -> str | None:
    """Runs were looked at since the service started, and not long ago."""
    try:
        last = looked.stat().st_mtime
    except FileNotFoundError:
        last = 0.0
    if last < started:
        return "it has not looked at the runs yet"
    since = time.time() - last
    return f"it has not looked at the runs for {since:.0f} s" if since > _LOOK_AT_LEAST_S else None


def _reason(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
