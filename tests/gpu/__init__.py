"""What only a GPU can show. ``python -m tests.gpu --out DIR`` runs it all once and writes it down.

The tests here are skipped where there is no GPU, unless ``EVIT_MM_GPU_TESTS=cpu`` asks for them.
"""
