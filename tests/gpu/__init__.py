"""Tests, benchmarks and trainings for a GPU. ``python -m tests.gpu --out DIR`` runs all of them.

Without a GPU, the tests are skipped. Set ``EVIT_MM_GPU_TESTS=cpu`` to run them on the CPU.
"""
