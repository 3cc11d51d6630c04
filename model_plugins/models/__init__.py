"""The models that prismoe brings to vLLM.

May import worker, for its checks, and what is behind it.
"""
