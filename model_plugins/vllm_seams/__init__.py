"""Every place where prismoe overrides vLLM or uses a private name of it, one file each.

`front` has those of the process that answers, `engine` those of the engine. A file lists what it needs from
vLLM in NEEDS; `check` compares that with the installed vLLM. Imports nothing else of prismoe.
"""
