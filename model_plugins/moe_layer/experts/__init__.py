"""What runs just the experts that a token uses, by platform.

May import routers, the step and kernels; knows nothing of models that vLLM has built.
"""
