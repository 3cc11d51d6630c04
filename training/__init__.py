"""How prismoji, the bundled model, is trained: `python -m prismoe.training.prismoji`; and the papers' losses.

May import routing, the calibration's fits and kernels. Nothing imports it but benchmarks.
"""
