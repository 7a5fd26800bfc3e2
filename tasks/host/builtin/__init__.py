"""Inference functions for packages that name a predefined configuration and bring no function.

Each file is loaded by the host's child as a package's own function would be, perhaps by another Python:
it imports numpy, its framework and its siblings by their bare name, and nothing of ours. Which definition
gets which file is decided in ``tasks/package/builtin.py``.

They are no part of a package's digest; a digest of this folder's source stands in the keys of results
beside it (``tasks.package.builtin.function_identity``), so that results of before are not taken for those
of now.
"""
