"""Every place where prismoe overrides vLLM or uses a private name of it, one file each.

`front` has those of the process that answers, `engine` those of the engine. A file names what it needs of
vLLM in NEEDS; `check` compares that with the vLLM that is installed. Imports nothing else of prismoe.
"""
