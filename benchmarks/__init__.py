"""Benchmarks are scripts; their results stand in README.md beside them."""
