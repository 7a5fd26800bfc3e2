"""The real stack on one machine: ``python -m infra.local up|down|status|env|passwords``."""

from infra.local.errors import StackError
from infra.local.layout import Layout, free_port_base
from infra.local.stack import LocalStack, ServiceStatus

__all__ = ["Layout", "LocalStack", "ServiceStatus", "StackError", "free_port_base"]
