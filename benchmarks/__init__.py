"""Measurements of gnats beside its peers. Entry point: ``python -m benchmarks``."""
