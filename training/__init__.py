"""Trains prismoji, the bundled model: `python -m prismoe.training.prismoji`. Has the papers' losses.

It may import routing, the calibration's fits and kernels. Only benchmarks import it.
"""
