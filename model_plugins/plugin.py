"""What vLLM calls in each of its processes. Importing this imports neither torch nor vLLM."""

from functools import cache

from prismoe.model_plugins.models.moe_llava.names import RENDERER


@cache  # A second call would have vLLM warn of every name.
def register() -> None:
    """Make the MoE-LLaVA models known to vLLM. vLLM calls this in each of its processes."""
    from transformers import AutoConfig, AutoTokenizer
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.transformers_utils.chat_templates.registry import register_chat_template_fallback_path

    from prismoe.model_plugins.models.moe_llava.families import FAMILIES
    from prismoe.model_plugins.models.moe_llava.start_check import MoELLaVAStartCheck
    from prismoe.model_plugins.worker.processes import end_with_parent_if_asked

    models = "prismoe.model_plugins.models.moe_llava"
    RENDERER_REGISTRY.register(RENDERER, f"{models}.rendering", "PlainTextRenderer")
    TokenizerRegistry.register(RENDERER, "vllm.tokenizers.hf", "CachedHfTokenizer")

    end_with_parent_if_asked()
    for family in FAMILIES:
        for config in family.configs:
            AutoConfig.register(config.model_type, config, exist_ok=True)
            register_chat_template_fallback_path(config.model_type, family.chat_template)
            if family.tokenizer:
                AutoTokenizer.register(config, fast_tokenizer_class=family.tokenizer, exist_ok=True)
        for architecture in family.architectures:
            ModelRegistry.register_model(architecture, f"{models}.model:MoELLaVAForCausalLM")
            MODELS_CONFIG_MAP[architecture] = MoELLaVAStartCheck
