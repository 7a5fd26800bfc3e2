"""Command line of the local stack."""

from __future__ import annotations

import argparse
import shlex
import sys

from infra.local.errors import StackError
from infra.local.secrets import ROLES, Role
from infra.local.stack import LocalStack


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 when it did what it says."""
    parser = argparse.ArgumentParser(prog="python -m infra.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="boot what does not run, register pools and deployments")
    commands.add_parser("down", help="stop everything")
    commands.add_parser("status", help="how each service is")
    environment = commands.add_parser("env", help="export lines for a shell that shall use the stack")
    environment.add_argument("role", nargs="?", default="admin", choices=ROLES)
    commands.add_parser("passwords", help="show the passwords of the web pages")
    chosen = parser.parse_args(arguments)
    try:
        stack = LocalStack(say=_say)
        if chosen.command == "up":
            stack.up()
            _say(stack.summary())
        elif chosen.command == "down":
            stack.down()
        elif chosen.command == "status":
            return _show_status(stack)
        elif chosen.command == "env":
            for name, value in (
                stack.environment(chosen.role) | _for_any_s3_client(stack, chosen.role)
            ).items():
                _say(f"export {name}={shlex.quote(value)}")
        else:
            _say(f"prefect  {stack.secrets.prefect_auth_string}")
            for user, password in sorted(stack.secrets.mlflow_passwords.items()):
                _say(f"mlflow   {user}:{password}")
    except StackError as error:
        sys.stderr.write(f"chipline: {error}\n")
        return 1
    return 0


def _for_any_s3_client(stack: LocalStack, role: Role) -> dict[str, str]:
    """A person's shell has other S3 clients, too; our own processes take CHIPLINE_STORES."""
    key = stack.secrets.s3_keys[role]
    return {
        "AWS_ACCESS_KEY_ID": key.access_key,
        "AWS_SECRET_ACCESS_KEY": key.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": stack.layout.s3_url,
    }


def _show_status(stack: LocalStack) -> int:
    services = stack.status()
    for service in services:
        state = "serves" if service.problem is None else service.problem
        process = f"process {service.pid}, {service.resident_mb} MB" if service.pid else "-"
        _say(f"  {service.name:12} {process:26} {state}")
    good = bool(services) and all(service.problem is None for service in services)
    _say(stack.summary() if good else "The stack is not up: `make up` boots it.")
    return 0 if good else 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
