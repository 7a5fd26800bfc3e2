"""Each door of the running stack is closed to a caller without its key."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from botocore.exceptions import ClientError

from infra.local import LocalStack
from infra.local.health import client, s3_client
from infra.local.processes import marked
from infra.local.secrets import Role

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def _s3(stack: LocalStack, role: Role) -> S3Client:
    key = stack.secrets.s3_keys[role]
    return s3_client(stack.layout, key.access_key, key.secret_key)


def _code(error: pytest.ExceptionInfo[ClientError]) -> str:
    return error.value.response["Error"]["Code"]


def test_nothing_listens_beyond_this_machine(stack: LocalStack) -> None:
    listening = [
        connection
        for process in marked(stack.secrets.stack_id)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len({connection.laddr.port for connection in listening}) >= 12
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


def test_everything_in_the_home_is_for_its_owner_alone(stack: LocalStack) -> None:
    assert stat.S_IMODE(stack.layout.home.stat().st_mode) == 0o700
    secret = [stack.layout.secrets_file, stack.layout.home / "s3" / "identities.json"]
    secret += [stack.layout.home / "s3" / name for name in ("peer.key", "security.toml")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


def test_no_command_line_shows_a_secret(stack: LocalStack) -> None:
    lines = [" ".join(process.cmdline()) for process in marked(stack.secrets.stack_id)]
    keys = [key.secret_key for key in stack.secrets.s3_keys.values()]
    keys += [*stack.secrets.mlflow_passwords.values(), stack.secrets.prefect_password]
    assert not [key for key in keys if any(key in line for line in lines)]


@pytest.mark.parametrize("path", ["", "chipline?list-type=2", "chipline/health/probe"])
def test_s3_refuses_anonymous_reads(stack: LocalStack, path: str) -> None:
    assert httpx.get(f"{stack.layout.s3_url}/{path}").status_code == 403


def test_s3_refuses_anonymous_writes(stack: LocalStack) -> None:
    assert httpx.put(f"{stack.layout.s3_url}/chipline/shards/x", content=b"x").status_code == 403
    assert httpx.put(f"{stack.layout.s3_url}/stranger").status_code == 403


def test_s3_refuses_a_wrong_key(stack: LocalStack) -> None:
    key = stack.secrets.s3_keys["admin"]
    with pytest.raises(ClientError) as error:
        s3_client(stack.layout, key.access_key, "wrong").list_buckets()
    assert _code(error) == "SignatureDoesNotMatch"


@pytest.mark.parametrize(
    ("role", "key"),
    [
        ("viewer", "outputs/x"),
        ("cpu", "packages/n/d/x"),
        ("cpu", "approvals/x"),
        ("gpu", "revocations/x"),
        ("control", "revocations/x"),
        ("gpu", "training-data/x"),
        ("gpu", "approvals/x"),
        ("control", "approvals/x"),
        ("control", "made/x"),
        ("cpu", "made/x"),
        ("mlflow", "outputs/x"),
    ],
)
def test_a_role_writes_only_where_it_must(stack: LocalStack, role: Role, key: str) -> None:
    with pytest.raises(ClientError) as error:
        _s3(stack, role).put_object(Bucket="chipline", Key=key, Body=b"x")
    assert _code(error) == "AccessDenied"


@pytest.mark.parametrize(
    ("role", "key"),
    [
        ("cpu", "training-data/x"),
        ("cpu", "shards/x"),
        ("gpu", "shards/x"),
        ("gpu", "packages/n/d/x"),
        ("gpu", "outputs/x"),
        ("gpu", "made/x"),
        ("control", "outputs/x"),
        ("control", "training-data/x"),
        ("control", "packages/x"),
    ],
)
def test_a_role_reads_and_writes_where_it_must(stack: LocalStack, role: Role, key: str) -> None:
    s3 = _s3(stack, role)
    s3.put_object(Bucket="chipline", Key=f"{key}-{role}", Body=b"x")
    assert s3.get_object(Bucket="chipline", Key=f"{key}-{role}")["Body"].read() == b"x"
    assert _s3(stack, "viewer").get_object(Bucket="chipline", Key=f"{key}-{role}")["Body"].read() == b"x"


def test_no_worker_sees_the_bucket_of_mlflow(stack: LocalStack) -> None:
    roles: tuple[Role, ...] = ("control", "cpu", "gpu", "viewer")
    for role in roles:
        with pytest.raises(ClientError) as error:
            _s3(stack, role).list_objects_v2(Bucket="mlflow")
        assert _code(error) == "AccessDenied"


def test_the_inner_parts_of_the_store_take_nothing_from_strangers(stack: LocalStack) -> None:
    layout = stack.layout
    filer = f"http://127.0.0.1:{layout.port('s3-filer')}"
    master = f"http://127.0.0.1:{layout.port('s3-master')}"
    volume = f"http://127.0.0.1:{layout.port('s3-volume')}"
    assert httpx.get(f"{filer}/buckets/chipline/health/probe").status_code == 404
    assert httpx.put(f"{filer}/buckets/chipline/x", content=b"x").status_code == 404
    assert httpx.get(f"{master}/dir/assign").status_code == 404
    for method in ("GET", "PUT", "DELETE"):
        assert httpx.request(method, f"{volume}/1,01637037d6", content=b"x").status_code == 401


def test_the_store_answers_no_grpc_caller_without_its_certificate(stack: LocalStack, tmp_path: Path) -> None:
    port = stack.layout.port
    weed = shutil.which("weed", path=str(Path(sys.executable).parent))
    assert weed is not None

    def buckets(*options: str) -> str:
        command = [
            weed, *options, "shell",
            f"-master=127.0.0.1:{port('s3-master')}.{port('s3-master-grpc')}",
            f"-filer=127.0.0.1:{port('s3-filer')}.{port('s3-filer-grpc')}",
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={"HOME": str(tmp_path), "PATH": ""}, cwd=tmp_path,
        ) as shell:  # fmt: skip
            timer = threading.Timer(6.0, shell.kill)  # a caller who is not let in tries for ever
            timer.start()
            output, _ = shell.communicate("fs.ls /buckets\n")
            timer.cancel()
        return output

    assert "chipline" in buckets(f"-config_dir={stack.layout.home / 's3'}")
    assert "chipline" not in buckets()


def test_mlflow_asks_for_a_password(stack: LocalStack) -> None:
    search = "/api/2.0/mlflow/experiments/search"
    answers = []
    for auth in (None, "admin:wrong", f"viewer:{stack.secrets.mlflow_passwords['viewer']}"):
        with client(stack.layout.mlflow_url, auth) as http:
            answers.append(http.post(search, json={"max_results": 1}).status_code)
    assert answers == [401, 401, 200]


def test_a_viewer_of_mlflow_changes_nothing_of_others(stack: LocalStack) -> None:
    passwords = stack.secrets.mlflow_passwords
    with client(stack.layout.mlflow_url, f"worker:{passwords['worker']}") as http:
        made = http.post("/api/2.0/mlflow/experiments/create", json={"name": "doors"})
        identifier = (
            made.json().get("experiment_id")
            or http.get(
                "/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "doors"}
            ).json()["experiment"]["experiment_id"]
        )
    with client(stack.layout.mlflow_url, f"viewer:{passwords['viewer']}") as http:
        refused = http.post("/api/2.0/mlflow/runs/create", json={"experiment_id": identifier})
        seen = http.get("/api/2.0/mlflow/experiments/get", params={"experiment_id": identifier})
    assert (refused.status_code, seen.status_code) == (403, 200)


@pytest.mark.parametrize("server", ["mlflow", "prefect"])
def test_no_foreign_page_may_call_a_server(stack: LocalStack, server: str) -> None:
    url = {"mlflow": stack.layout.mlflow_url, "prefect": f"{stack.layout.prefect_url}/api/flows/filter"}
    answer = httpx.options(
        url[server],
        headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert answer.headers.get("access-control-allow-origin") not in ("*", "http://evil.example")


def test_prefect_asks_for_its_key(stack: LocalStack) -> None:
    answers = []
    for auth in (None, "admin:wrong", stack.secrets.prefect_auth_string):
        with client(f"{stack.layout.prefect_url}/api", auth) as http:
            answers.append(http.post("/flows/filter", json={}).status_code)
    assert answers == [401, 401, 200]
