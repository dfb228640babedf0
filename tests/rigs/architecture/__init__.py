"""Detectors of broken rules in the project's own sources; `benchmarks/architecture.py` has the rules and counts."""
