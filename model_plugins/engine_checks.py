"""What of vLLM's settings routing needs, and what can't be combined with modality routing yet."""

from vllm.config import VllmConfig
from vllm.logger import init_logger

from prismoe.model_plugins.engine_options import ROUTED_WORKER
from prismoe.model_plugins.scheduler import WholeImages

logger = init_logger("vllm.prismoe.engine")


def check_engine(vllm_config: VllmConfig, needs_whole_images: bool, tokens_per_image: int) -> None:
    """Stop the start with a sentence where routing would be wrong (ValueError)."""
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            "Modality routing needs the whole model on each rank: use --pipeline-parallel-size 1."
        )
    if parallel.prefill_context_parallel_size > 1:
        raise ValueError(
            "Modality routing needs each prompt on one rank: use --prefill-context-parallel-size 1."
        )
    if parallel.enable_expert_parallel:
        raise ValueError(
            "Modality routing needs a part of every expert on each rank: leave --enable-expert-parallel out."
        )
    if parallel.use_ubatching:
        raise ValueError(
            "Modality routing needs a step's tokens together: leave --enable-dbo and --ubatch-size out."
        )
    if parallel.use_sequence_parallel_moe:
        raise ValueError(
            "Modality routing needs a step's tokens together, and with tensor, data and expert parallelism "
            "at once vLLM splits them over the ranks: leave --enable-expert-parallel out."
        )
    if vllm_config.lora_config is not None:
        raise ValueError(
            "prismoe serves no LoRA adapters: leave --enable-lora out, "
            "and merge the adapter into the checkpoint."
        )
    if vllm_config.speculative_config is not None:
        raise ValueError(
            "Modality routing does not run with speculative decoding: leave --speculative-config out."
        )
    multimodal = vllm_config.model_config.multimodal_config
    if multimodal is None or multimodal.get_limit_per_prompt("image") == 0:
        raise ValueError("Images are switched off: give --limit-mm-per-prompt an image limit of 1 or more.")
    if needs_whole_images:
        _check_whole_images(vllm_config, tokens_per_image)


def check_request_engine(vllm_config: VllmConfig) -> None:
    """Where a policy decides once a request: the same, and no prefix is shared between requests.

    A token's keys and values then depend on its whole prompt and on the request's task, by which vLLM's cache
    does not tell requests apart.
    """
    if vllm_config.parallel_config.worker_cls != ROUTED_WORKER:
        raise ValueError(
            "This routing policy decides once a request, and vLLM's own worker does not tell the model which "
            f"request a token is of: start with `prismoe serve`, or pass {ROUTED_WORKER} as --worker-cls."
        )
    if vllm_config.kv_transfer_config is not None:
        raise ValueError(
            "This routing policy decides once a request, and transferred KV blocks may come from "
            "another one: leave --kv-transfer-config out."
        )
    if vllm_config.model_config.enable_prompt_embeds:
        raise ValueError("This routing policy reads the prompt's tokens: leave --enable-prompt-embeds out.")
    if vllm_config.cache_config.enable_prefix_caching:
        logger.info("The routing policy decides once a request, so prefix caching is switched off.")
        vllm_config.cache_config.enable_prefix_caching = False


def _check_whole_images(vllm_config: VllmConfig, tokens_per_image: int) -> None:
    if not issubclass(vllm_config.scheduler_config.get_scheduler_cls(), WholeImages):
        raise ValueError(
            "This routing policy needs each image in one step: start with `prismoe serve`, or pass "
            "prismoe.model_plugins.scheduler.WholeImageScheduler as --scheduler-cls "
            "(WholeImageAsyncScheduler where vLLM schedules asynchronously)."
        )
    if vllm_config.kv_transfer_config is not None:
        raise ValueError(
            "This routing policy needs each image in one step, and transferred KV blocks can end inside one: "
            "leave --kv-transfer-config out."
        )
    for option in ("max_num_batched_tokens", "max_num_scheduled_tokens", "long_prefill_token_threshold"):
        limit = getattr(vllm_config.scheduler_config, option)
        if limit and limit < tokens_per_image:
            raise ValueError(
                "This routing policy needs each image in one step, and an image is "
                f"{tokens_per_image} tokens: use --{option.replace('_', '-')} {tokens_per_image} or more."
            )
