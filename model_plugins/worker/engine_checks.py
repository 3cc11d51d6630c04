"""Checks vLLM's settings: those that routing needs, and those that it doesn't support."""

from vllm.config import SchedulerConfig, VllmConfig
from vllm.logger import init_logger
from vllm.platforms import current_platform

from prismoe.model_plugins.vllm_seams.engine.scheduler import (
    WholeImageAsyncScheduler,
    WholeImageScheduler,
    WholeRequestAsyncScheduler,
    WholeRequestScheduler,
)
from prismoe.model_plugins.worker.engine_options import operator_policies, shadow_policies

ASYNC: dict[type[WholeImageScheduler], type[WholeImageScheduler]] = {
    WholeImageScheduler: WholeImageAsyncScheduler,
    WholeRequestScheduler: WholeRequestAsyncScheduler,
}
"""The asynchronous variant of each scheduler."""

logger = init_logger("vllm.prismoe.engine")


def check_native_engine(vllm_config: VllmConfig) -> None:
    """Raise ValueError where prismoe can't serve one of vLLM's own models correctly."""
    routes_by_policy = operator_policies(vllm_config) is not None
    shadow_policies(vllm_config)
    parallel = vllm_config.parallel_config
    if parallel.enable_expert_parallel and current_platform.is_cpu():
        raise ValueError(
            "vLLM's experts on CPU can't be spread over ranks: leave --enable-expert-parallel out."
        )
    if parallel.data_parallel_size > 1 and vllm_config.model_config.is_moe and current_platform.is_cpu():
        raise ValueError(
            "On CPU vLLM's data-parallel engines can't exchange a MoE layer's tokens: "
            "leave --data-parallel-size out."
        )
    if parallel.pipeline_parallel_size > 1:
        raise ValueError("prismoe needs the whole model on each rank: use --pipeline-parallel-size 1.")
    if parallel.prefill_context_parallel_size > 1:
        raise ValueError("prismoe needs each prompt on one rank: use --prefill-context-parallel-size 1.")
    if parallel.enable_elastic_ep:
        raise ValueError("prismoe counts in the engines that it starts with: leave --enable-elastic-ep out.")
    if vllm_config.lora_config is not None and vllm_config.model_config.is_moe and current_platform.is_cpu():
        raise ValueError(
            "vLLM runs MoE layers with LoRA adapters only on GPUs: leave --enable-lora out, "
            "and merge the adapter into the checkpoint."
        )
    if routes_by_policy and vllm_config.lora_config is not None:
        raise ValueError(
            "vLLM's LoRA experts give each token the model's own number of experts, and a policy may give "
            "another: leave --enable-lora out, and merge the adapter into the checkpoint."
        )
    if parallel.use_ubatching:
        raise ValueError("prismoe needs a step's tokens together: leave --enable-dbo and --ubatch-size out.")
    if vllm_config.cache_config.kv_sharing_fast_prefill:
        raise ValueError(
            "prismoe needs all of a step's tokens in each layer: leave --kv-sharing-fast-prefill out."
        )
    if vllm_config.model_config.enable_prompt_embeds:
        raise ValueError("prismoe needs the modality of each token: leave --enable-prompt-embeds out.")


def check_engine(
    vllm_config: VllmConfig,
    needs_whole_images: bool,
    tokens_per_image: int,
    needs_whole_requests: bool = False,
) -> None:
    """Check an engine for a MoE-LLaVA checkpoint, and give vLLM the scheduler that routing needs.

    Raises ValueError where routing would be wrong, or a request could wait forever.
    """
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
        raise ValueError("Images are switched off: set --limit-mm-per-prompt's image limit to 1 or more.")
    if needs_whole_images:
        _check_whole_images(vllm_config)
    needed = WholeRequestScheduler if needs_whole_requests else WholeImageScheduler
    chosen = _choose_scheduler(vllm_config.scheduler_config, needed if needs_whole_images else None)
    if chosen is not None and issubclass(chosen, WholeRequestScheduler):
        longest = vllm_config.model_config.max_model_len
        _check_fits(vllm_config.scheduler_config, longest, "All images of a request are", "a prompt may be")
    elif chosen is not None and issubclass(chosen, WholeImageScheduler):
        _check_fits(vllm_config.scheduler_config, tokens_per_image, "Each image is", "an image is")
    _check_steps(vllm_config, tokens_per_image)


def check_request_engine(vllm_config: VllmConfig) -> None:
    """Check an engine for a policy that decides by the whole request, and switch prefix caching off.

    A token's keys and values then depend on its whole prompt, or on the request's task, and vLLM's cache does
    not distinguish requests by these. Raises ValueError where requests could still share them.
    """
    if vllm_config.kv_transfer_config is not None:
        raise ValueError(
            "This routing policy decides by the whole request, and transferred KV blocks may come from "
            "another one: leave --kv-transfer-config out."
        )
    if vllm_config.model_config.enable_prompt_embeds:
        raise ValueError("This routing policy reads the prompt's tokens: leave --enable-prompt-embeds out.")
    if vllm_config.cache_config.enable_prefix_caching:
        logger.info("The routing policy decides by the whole request, so prefix caching is switched off.")
        vllm_config.cache_config.enable_prefix_caching = False


def _check_whole_images(vllm_config: VllmConfig) -> None:
    if vllm_config.kv_transfer_config is not None:
        raise ValueError(
            "This routing policy needs each image in one step, and transferred KV blocks can end inside one: "
            "leave --kv-transfer-config out."
        )
    if vllm_config.model_config.is_hybrid and vllm_config.cache_config.enable_prefix_caching:
        raise ValueError(
            "This routing policy needs each image in one step, and vLLM's prefix cache ends steps of a model "
            "with recurrent layers inside images: use --no-enable-prefix-caching."
        )


def _check_steps(vllm_config: VllmConfig, tokens_per_image: int) -> None:
    """Raise ValueError for steps that are too small for what vLLM may not cut."""
    scheduler, longest = vllm_config.scheduler_config, vllm_config.model_config.max_model_len
    scheduled = scheduler.max_num_scheduled_tokens
    if not scheduler.enable_chunked_prefill and scheduled is not None and scheduled < longest:
        raise ValueError(
            f"Without chunked prefill a step has to hold a whole prompt, which may be {longest} tokens: use "
            f"--max-num-scheduled-tokens {longest} or more, or leave --no-enable-chunked-prefill out."
        )
    if scheduler.disable_chunked_mm_input and scheduler.max_num_batched_tokens < tokens_per_image:
        raise ValueError(
            f"A step has to hold a whole image, which is {tokens_per_image} tokens: use "
            f"--max-num-batched-tokens {tokens_per_image} or more, or leave --disable-chunked-mm-input out."
        )


def _choose_scheduler(
    scheduler: SchedulerConfig, needed: type[WholeImageScheduler] | None
) -> type[object] | None:
    """Set the scheduler that is needed. Returns the scheduler's class; None where vLLM chooses it."""
    if scheduler.scheduler_cls is None:
        if needed is None:
            return None
        # On other platforms than CPU, vLLM may decide later to schedule asynchronously. The asynchronous
        # scheduler works in both cases.
        is_sync = scheduler.async_scheduling is False or current_platform.is_cpu()
        chosen = needed if is_sync else ASYNC[needed]
        scheduler.scheduler_cls = f"{chosen.__module__}.{chosen.__name__}"
        return chosen
    try:
        own = scheduler.get_scheduler_cls()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--scheduler-cls {scheduler.scheduler_cls} can't be imported: {error}.") from error
    if needed is not None and not issubclass(own, needed):
        what = "all images of a request" if needed is WholeRequestScheduler else "each image"
        raise ValueError(
            f"This routing policy needs {what} in one step, which only prismoe's own scheduler ensures: "
            "leave --scheduler-cls out."
        )
    return own


def _check_fits(scheduler: SchedulerConfig, tokens: int, kept: str, size: str) -> None:
    """Raise ValueError where a step can't hold what is kept whole, and a token of each other request."""
    others = (scheduler.max_num_active_seqs or scheduler.max_num_seqs) - 1
    smallest = tokens + others
    for option in ("max_num_batched_tokens", "max_num_scheduled_tokens"):
        limit = getattr(scheduler, option)
        if limit is not None and limit < smallest:
            raise ValueError(
                f"{kept} kept in one step. {size.capitalize()} {tokens} tokens, and up to {others} "
                f"other requests decode beside it: use --{option.replace('_', '-')} {smallest} or more, with "
                f"--max-num-seqs {scheduler.max_num_seqs}."
            )
    if 0 < scheduler.long_prefill_token_threshold < tokens:
        raise ValueError(
            f"{kept} kept in one step, and {size} {tokens} tokens: use "
            f"--long-prefill-token-threshold {tokens} or more."
        )
