"""The benchmark: ``python -m benchmarks``. What it measures and how to read it is in ``benchmarks/README.md``."""
