"""The plugin that vLLM loads in each of its processes. Importing this imports neither torch nor vLLM.

vLLM loads every installed general plugin. Unless `VLLM_PLUGINS` names prismoe, this one only registers
MoE-LLaVA: it replaces none of vLLM's workers, routers or schedulers.
"""

import os
from functools import cache

from prismoe.model_plugins.models.moe_llava.names import RENDERER
from prismoe.model_plugins.processes import end_with_parent_if_asked

NAME = "prismoe"
"""The plugin's name in `VLLM_PLUGINS`."""


def add_to_vllm_plugins() -> None:
    """Add this plugin to `VLLM_PLUGINS` if that is set: engines of prismoe's commands need it."""
    named = os.environ.get("VLLM_PLUGINS")
    if named is not None and NAME not in named.split(","):
        os.environ["VLLM_PLUGINS"] = ",".join(filter(None, [named, NAME]))


@cache  # On a second call vLLM would warn about every name.
def register() -> None:
    """Register the MoE-LLaVA models with vLLM, and watch any model's experts if `VLLM_PLUGINS` names this."""
    end_with_parent_if_asked()
    if NAME in os.environ.get("VLLM_PLUGINS", "").split(","):
        from prismoe.model_plugins.worker.plain_vllm import watch_experts

        watch_experts()
    _register_moe_llava()


def _register_moe_llava() -> None:
    from transformers import AutoConfig, AutoTokenizer
    from vllm import ModelRegistry
    from vllm.config import VllmConfig
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.transformers_utils.chat_templates.registry import register_chat_template_fallback_path

    from prismoe.model_plugins.models.moe_llava.families import FAMILIES

    class StartCheck(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_config(vllm_config: VllmConfig) -> None:
            from prismoe.model_plugins.models.moe_llava.start_check import check_start

            check_start(vllm_config)

    models = "prismoe.model_plugins.models.moe_llava"
    RENDERER_REGISTRY.register(RENDERER, f"{models}.rendering", "PlainTextRenderer")
    TokenizerRegistry.register(RENDERER, "vllm.tokenizers.hf", "CachedHfTokenizer")
    for family in FAMILIES:
        for config in family.configs:
            AutoConfig.register(config.model_type, config, exist_ok=True)
            register_chat_template_fallback_path(config.model_type, family.chat_template)
            if family.tokenizer:
                AutoTokenizer.register(config, fast_tokenizer_class=family.tokenizer, exist_ok=True)
        for architecture in family.architectures:
            ModelRegistry.register_model(architecture, f"{models}.model:MoELLaVAForCausalLM")
            MODELS_CONFIG_MAP[architecture] = StartCheck
