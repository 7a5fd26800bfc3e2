"""Inference functions for packages that name a predefined configuration and bring no function.

Each file is loaded by the host's child as a package's own function would be, perhaps by another Python:
it imports numpy, its framework and its siblings by their bare name, and nothing of ours. Which definition
gets which file is decided in ``tasks/package/builtin.py``.

They are no part of a package's digest: whoever changes what one of them answers bumps the engine's
``SEMANTICS_VERSION``, or results of before are taken for those of now.
"""
