"""The code that runs inside vLLM's processes. Importing this package imports neither torch nor vLLM.

Its rooms, each of which may import the later ones: tools, plugin, models, worker, recording, moe_layer,
routing, and last files, processes and vllm_seams, which do not import each other.

The message of a ValueError is a sentence for the user, unless a docstring says otherwise.
"""
