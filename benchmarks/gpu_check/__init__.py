"""Checks that prismoe gives the same results on a GPU as on CPU: `python -m prismoe.benchmarks.gpu_check`."""
