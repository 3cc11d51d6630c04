"""What vLLM calls in each of its processes. Importing this imports neither torch nor vLLM."""

from functools import cache

from prismoe.model_plugins.models.moe_llava.names import CHAT_TEMPLATE, FAMILIES, RENDERER


@cache  # A second call would have vLLM warn of every name.
def register() -> None:
    """Make the MoE-LLaVA models known to vLLM. vLLM calls this in each of its processes."""
    from transformers import AutoConfig, AutoTokenizer
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.transformers_utils.chat_templates.registry import register_chat_template_fallback_path

    from prismoe.model_plugins.models.moe_llava import config, tokenizers
    from prismoe.model_plugins.models.moe_llava.start_check import MoELLaVAStartCheck
    from prismoe.model_plugins.worker.processes import end_with_parent_if_asked

    models = "prismoe.model_plugins.models.moe_llava"
    RENDERER_REGISTRY.register(RENDERER, f"{models}.rendering", "PlainTextRenderer")
    TokenizerRegistry.register(RENDERER, "vllm.tokenizers.hf", "CachedHfTokenizer")

    end_with_parent_if_asked()
    for module, family in FAMILIES.items():
        model = f"{models}.{module}:MoELLaVA{family}ForCausalLM"
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
