"""Whether prismoe does on a GPU what it does on CPU: `python -m prismoe.benchmarks.gpu_check`."""
