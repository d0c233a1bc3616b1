"""Benchmarks: each figure beside a reference that is measured in the same run.

``python -m vortex_worker.bench [--quick] [--only KEY,…] [--json FILE] [--plot DIR]``. A benchmark is a function
that gives a ``Result``; ``KEYS`` in ``__main__`` names them all. Each checks that what it measured
gave the right answer.
"""
