"""MLflow of the shared stack, seen by a worker of the pool ``gpu``."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from infra.local import LocalStack


@pytest.fixture
def tracked(stack: LocalStack, as_role: Any) -> str:
    """MLflow's address; this process has the worker's identity."""
    as_role("gpu")
    return stack.layout.mlflow_url


@pytest.fixture
def name() -> str:
    """A name that no other test, and no earlier session on a kept stack, uses."""
    return f"test-{uuid.uuid4().hex[:12]}"
