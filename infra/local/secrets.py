"""Generated credentials: one identity per role, each door with its own key."""

from __future__ import annotations

import json
import secrets
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

from infra.local.layout import BUCKET, MLFLOW_BUCKET, Layout

Role = Literal["admin", "control", "cpu", "gpu", "viewer", "mlflow"]
ROLES: tuple[Role, ...] = get_args(Role)
# Roles with a user of their own in MLflow. Those who write runs share one user, since in MLflow only the
# one who made a run may add to it, and a chain is made by several workers.
MLFLOW_USERS: dict[Role, str] = {"admin": "admin", "control": "worker", "gpu": "worker", "viewer": "viewer"}

# What each role may do in the object store, as SeaweedFS actions. Nobody but the admin writes
# ``approvals/`` and ``revocations/``: a worker that runs foreign code must not be able to approve it.
_READ = [f"Read:{BUCKET}", f"List:{BUCKET}"]
S3_ACTIONS: dict[Role, list[str]] = {
    "admin": ["Admin", "Read", "Write", "List", "Tagging"],
    "control": [
        *_READ,
        *(
            f"Write:{BUCKET}/{kind}/*"
            for kind in ("training-data", "packages", "outputs", "shards", "leases")
        ),
    ],
    "cpu": [*_READ, *(f"Write:{BUCKET}/{kind}/*" for kind in ("training-data", "outputs", "shards"))],
    # ``made/`` says that a training made a package here; who publishes what others bring may not say that.
    "gpu": [*_READ, *(f"Write:{BUCKET}/{kind}/*" for kind in ("packages", "made", "outputs", "shards"))],
    "viewer": _READ,
    "mlflow": [f"{action}:{MLFLOW_BUCKET}" for action in ("Read", "Write", "List", "Tagging")],
}


class S3Key(BaseModel):
    """One S3 identity."""

    access_key: str = Field(default_factory=lambda: secrets.token_hex(10).upper())
    secret_key: str = Field(default_factory=lambda: secrets.token_urlsafe(30))


class Secrets(BaseModel):
    """Everything secret about one stack. Made once per home; never logged, never on a command line."""

    stack_id: str = Field(default_factory=lambda: secrets.token_hex(12))
    prefect_password: str = Field(default_factory=lambda: secrets.token_urlsafe(18))
    mlflow_passwords: dict[str, str] = Field(
        default_factory=lambda: {user: secrets.token_urlsafe(18) for user in set(MLFLOW_USERS.values())}
    )
    mlflow_cookie_key: str = Field(default_factory=lambda: secrets.token_urlsafe(30))
    s3_keys: dict[Role, S3Key] = Field(default_factory=lambda: {role: S3Key() for role in ROLES})
    seaweed_signing_keys: list[str] = Field(
        default_factory=lambda: [secrets.token_urlsafe(30) for _ in range(4)]
    )

    @property
    def prefect_auth_string(self) -> str:
        """What Prefect's API and its login page ask for."""
        return f"admin:{self.prefect_password}"

    def s3_identities(self) -> dict[str, Any]:
        """SeaweedFS' identities file."""
        return {
            "identities": [
                {
                    "name": role,
                    "credentials": [{"accessKey": key.access_key, "secretKey": key.secret_key}],
                    "actions": S3_ACTIONS[role],
                }
                for role, key in self.s3_keys.items()
            ]
        }


def write_private(path: Any, text: str) -> None:
    """Write a file that only its owner can read, all or nothing."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.replace(path)


def load_secrets(layout: Layout) -> Secrets:
    """The stack's secrets, made at the first call."""
    layout.folder()
    if layout.secrets_file.exists():
        return Secrets.model_validate_json(layout.secrets_file.read_text())
    made = Secrets()
    write_private(layout.secrets_file, made.model_dump_json(indent=2) + "\n")
    return made


def role_environment(layout: Layout, keys: Secrets, role: Role) -> dict[str, str]:
    """What a process of this role needs to reach the stack, and nothing more."""
    key = keys.s3_keys[role]
    buckets = [MLFLOW_BUCKET] if role == "mlflow" else [BUCKET]
    if role == "admin":
        buckets = [BUCKET, MLFLOW_BUCKET]
    stores = [
        {
            "prefix": f"s3://{bucket}",
            "endpoint_url": layout.s3_url,
            "region": "us-east-1",
            "access_key": key.access_key,
            "secret_key": key.secret_key,
        }
        for bucket in buckets
    ]
    environment = {
        "CHIPLINE_HOME": str(layout.home),
        "CHIPLINE_PORT_BASE": str(layout.port_base),
        "CHIPLINE_ROOT": f"s3://{BUCKET}",
        "CHIPLINE_STORES": json.dumps(stores),
        "CHIPLINE_CACHE": str(layout.home / "cache"),
        # A proxy must not see, or break, what goes to our own servers.
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    if role in MLFLOW_USERS:
        user = MLFLOW_USERS[role]
        environment |= {
            "MLFLOW_TRACKING_URI": layout.mlflow_url,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": keys.mlflow_passwords[user],
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
    # Open-source Prefect knows one key for everything, so only those who run things get it.
    if role in ("admin", "control", "cpu", "gpu"):
        environment |= {
            "PREFECT_API_URL": f"{layout.prefect_url}/api",
            "PREFECT_API_AUTH_STRING": keys.prefect_auth_string,
            "PREFECT_HOME": str(layout.home / "prefect-client"),
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # A run without heartbeats on another machine counts as dead (infra/local/dead_runs.py).
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        }
    return environment
