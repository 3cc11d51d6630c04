"""What measures in process, beside vLLM, under a real Prometheus or on a GPU.

May import everything. Only tests import it.
"""
