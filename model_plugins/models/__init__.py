"""The models that prismoe adds to vLLM.

May import worker, for its checks, and the rooms after it.
"""
