"""The names by which vLLM and its users know MoE-LLaVA. Importing this imports neither torch nor vLLM."""

from pathlib import Path

RENDERER = "prismoe"
"""The name, in vLLM's registry, of the renderer that these models need (`rendering.PlainTextRenderer`)."""

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
