"""The private methods of vLLM's base classes that prismoe's classes override in other rooms."""

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [
    # moe_layer/router.py
    Needed(
        "vllm.model_executor.layers.fused_moe.router.base_router:BaseRouter._compute_routing",
        ("hidden_states", "router_logits", "indices_type", "input_ids"),
    ),
    # moe_layer/experts/cpu_experts.py
    Needed(
        "vllm.model_executor.layers.fused_moe.routed_experts:RoutedExperts._get_quant_method",
        ("prefix", "quant_config", "moe_config"),
    ),
    Needed(
        "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method"
        ":UnquantizedFusedMoEMethod.apply_monolithic",
        ("layer", "x", "router_logits", "input_ids"),
    ),
    # moe_layer/experts/gpu_experts.py
    Needed(
        "vllm.model_executor.layers.fused_moe.experts.triton_moe:TritonExperts.workspace_shapes",
        (
            "M",
            "N",
            "K",
            "topk",
            "global_num_experts",
            "local_num_experts",
            "expert_tokens_meta",
            "activation",
        ),
    ),
    Needed(
        "vllm.model_executor.layers.fused_moe.experts.triton_moe:TritonExperts.apply",
        (
            "output",
            "hidden_states",
            "w1",
            "w2",
            "topk_weights",
            "topk_ids",
            "activation",
            "global_num_experts",
        ),
    ),
    # models/moe_llava/processing.py, models/moe_llava/rendering.py
    Needed(
        "vllm.multimodal.processing.processor:BaseMultiModalProcessor._apply_prompt_updates",
        ("token_ids", "mm_prompt_updates"),
    ),
    Needed("vllm.renderers.hf:HfRenderer.render_messages", ("messages", "params")),
    Needed("vllm.renderers.hf:HfRenderer._tokenize_prompt", ("prompt", "params")),
]
