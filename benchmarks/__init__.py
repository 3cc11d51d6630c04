"""Measurements that run in process, beside vLLM, under a real Prometheus or on a GPU.

They may import everything. Only tests import them.
"""
