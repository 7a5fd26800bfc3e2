"""The generic contract: a package's module with a ``ChildImageClassifier`` or a ``ChildObjectDetector``.

docs/formats/python-raster-function.md, "Generic configurations". Runs in the host's child; see
``chipline_builtin.py``.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from typing import Any

import numpy as np
from chipline_builtin import Definition


def load_child(definition: Definition, class_name: str) -> Any:
    """An object of the package's class, with its weights loaded.

    Args:
        definition: ``ModelConfiguration`` names the module, ``ModelFile`` the weights.
        class_name: ``ChildImageClassifier`` or ``ChildObjectDetector``.

    Raises:
        ValueError: no such module in the package, or no such class in it.
    """
    module = _module(definition)
    kind = getattr(module, class_name, None)
    if not inspect.isclass(kind):
        there = ", ".join(name for name in vars(module) if name.startswith("Child")) or "none"
        raise ValueError(
            f"{module.__name__}.py defines no class {class_name} (of that kind it has: {there}): "
            "a generic configuration needs it"
        )
    child: Any = kind()
    try:
        inspect.signature(child.load_model).bind(definition.weights)
    except TypeError:
        # A published template defines load_model without an argument.
        child.load_model()
    else:
        child.load_model(definition.weights)
    return child


def _module(definition: Definition) -> Any:
    given = definition.values.get("ModelConfiguration")
    named = str(given.get("Name", "") if isinstance(given, dict) else given or "")
    path = os.path.realpath(definition.path(named[:-3] if named.endswith(".py") else named) + ".py")
    folder = os.path.realpath(definition.folder)
    if not path.startswith(folder + os.sep) or not os.path.isfile(path):  # noqa: PTH113
        raise ValueError(f"ModelConfiguration {named!r} is no module in the package")
    # Siblings of the module are imported by their bare names.
    for place in (os.path.dirname(path), folder):  # noqa: PTH120
        if place not in sys.path:
            sys.path.insert(0, place)
    name = os.path.splitext(os.path.basename(path))[0]  # noqa: PTH119, PTH122
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{named} is no Python module")
    module = importlib.util.module_from_spec(spec)
    # A package's module may have the name of one that is imported already: it must not take its place.
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


def with_own_parameters(child: Any, parameters: list[dict[str, Any]]) -> list[Any]:
    """The arguments with those that the child adds to the list it is given."""
    if not callable(getattr(child, "getParameterInfo", None)):
        return parameters
    answer = child.getParameterInfo(parameters)
    return parameters if answer is None else list(answer)


def as_array(values: Any) -> np.ndarray:
    """Numbers as numpy has them, of a tensor on any device too."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values)
