"""Benchmarks: run them as modules from the project's root, e.g. ``python -m benchmarks.mlp``."""
