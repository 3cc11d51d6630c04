"""What runs inside vLLM's processes. Importing this package imports neither torch nor vLLM."""


def register() -> None:
    """Make the MoE-LLaVA models known to vLLM. vLLM calls this in each of its processes."""
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from prismoe.model_plugins.moe_llava.config import MoELLaVAPhiConfig
    from prismoe.model_plugins.moe_llava.start_check import MoELLaVAStartCheck

    AutoConfig.register(MoELLaVAPhiConfig.model_type, MoELLaVAPhiConfig, exist_ok=True)
    # Re-saving a model that was loaded for evaluation prefixes its architecture's name with Eval.
    for architecture in ("MoELLaVAPhiForCausalLM", "EvalMoELLaVAPhiForCausalLM"):
        ModelRegistry.register_model(
            architecture, "prismoe.model_plugins.moe_llava.model:MoELLaVAPhiForCausalLM"
        )
        MODELS_CONFIG_MAP[architecture] = MoELLaVAStartCheck
