"""What runs inside vLLM's processes. Importing this package imports neither torch nor vLLM.

Its rooms, each of which may import those behind it: tools, plugin, models, worker, recording, moe_layer,
routing, and files, processes and vllm_seams, which know nothing of each other.
"""
