"""What runs inside vLLM's processes. Importing this package imports neither torch nor vLLM."""

from functools import cache
from pathlib import Path

FAMILIES = {"phi": "Phi", "stablelm": "Stablelm", "qwen": "QWen"}
"""The modules of `moe_llava` and how the authors' class names spell them."""

RENDERER = "prismoe"
"""The name, in vLLM's registry, of the renderer that these models need (`rendering.PlainTextRenderer`)."""

CHAT_TEMPLATE = Path(__file__).parent / "moe_llava" / "chat_template.jinja"


@cache  # A second call would have vLLM warn of every name.
def register() -> None:
    """Make the MoE-LLaVA models known to vLLM. vLLM calls this in each of its processes."""
    from transformers import AutoConfig, AutoTokenizer
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.transformers_utils.chat_templates.registry import register_chat_template_fallback_path

    from prismoe.model_plugins.moe_llava import config, tokenizers
    from prismoe.model_plugins.moe_llava.start_check import MoELLaVAStartCheck
    from prismoe.model_plugins.processes import end_with_parent_if_asked

    RENDERER_REGISTRY.register(RENDERER, "prismoe.model_plugins.moe_llava.rendering", "PlainTextRenderer")
    TokenizerRegistry.register(RENDERER, "vllm.tokenizers.hf", "CachedHfTokenizer")

    end_with_parent_if_asked()
    for module, family in FAMILIES.items():
        model = f"prismoe.model_plugins.moe_llava.{module}:MoELLaVA{family}ForCausalLM"
        for kind in (f"MoELLaVA{family}", f"Llava{family}"):
            config_class = getattr(config, f"{kind}Config")
            AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
            register_chat_template_fallback_path(config_class.model_type, CHAT_TEMPLATE)
            if tokenizer := tokenizers.RANKS_TOKENIZERS.get(family):
                AutoTokenizer.register(config_class, fast_tokenizer_class=tokenizer, exist_ok=True)
            # Re-saving a model that was loaded for evaluation prefixes its architecture's name with Eval.
            for architecture in (f"{kind}ForCausalLM", f"Eval{kind}ForCausalLM"):
                ModelRegistry.register_model(architecture, model)
                MODELS_CONFIG_MAP[architecture] = MoELLaVAStartCheck
