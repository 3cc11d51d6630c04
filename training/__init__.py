"""How prismoji, the bundled model, is trained: `python -m prismoe.training.prismoji`."""
