"""Training. Importing it is cheap: torch and Lightning come with the modules that need them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any


class _WithoutTransformers(MetaPathFinder):
    """Keeps torchmetrics from loading ``transformers`` for its measures of texts, which nobody here asks for.

    Lightning imports torchmetrics, and that loads ``transformers`` wherever it is installed: some ten seconds
    of every process that trains. Only the models that are built from it load it (``models/queries.py``).
    """

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: Any = None) -> None:
        """Find nothing; see to it that torchmetrics, when it comes, takes ``transformers`` for missing."""
        if name != "torchmetrics":
            return
        sys.meta_path.remove(self)
        from lightning_utilities.core.imports import RequirementCache

        found = RequirementCache._check_available

        def check(cache: Any) -> None:
            if str(cache.requirement).startswith("transformers"):
                cache.available, cache.message = False, "not used"
            else:
                found(cache)

        RequirementCache._check_available = check  # type: ignore[method-assign, assignment]


sys.meta_path.insert(0, _WithoutTransformers())
