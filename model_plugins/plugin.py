"""What vLLM calls in each of its processes. Importing this imports neither torch nor vLLM.

vLLM loads every general plugin that is installed. Unless `VLLM_PLUGINS` names prismoe, this one makes
MoE-LLaVA's names known and does nothing else: no worker, router or scheduler of vLLM's is replaced.
"""

import os
from functools import cache

from prismoe.model_plugins.models.moe_llava.names import RENDERER
from prismoe.model_plugins.processes import end_with_parent_if_asked

NAME = "prismoe"
"""What `VLLM_PLUGINS` calls it."""


def add_to_vllm_plugins() -> None:
    """Name this plugin in `VLLM_PLUGINS`, where that is set: engines of prismoe's commands need it."""
    named = os.environ.get("VLLM_PLUGINS")
    if named is not None and NAME not in named.split(","):
        os.environ["VLLM_PLUGINS"] = ",".join(filter(None, [named, NAME]))


@cache  # A second call would have vLLM warn of every name.
def register() -> None:
    """Make the MoE-LLaVA models known to vLLM, and watch any model's experts where that is asked for."""
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
