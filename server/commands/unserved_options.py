"""Refuses vLLM's options for features that prismoe leaves out, because they would do nothing."""

from argparse import ArgumentParser, Namespace
from typing import Any

ROUTES = {
    "enable_server_load_tracking": "/load",
    "enable_tokenizer_info_endpoint": "/tokenizer_info",
    "enable_offline_docs": "/docs",
    "enable_scale_out": "/inference/v1/generate",
    "tokens_only": "/inference/v1/generate",
    "return_sampling_mask": "/inference/v1/generate",
    "enable_trace_replay": "/inference/v1/generate",
    "cohere_is_reasoning_model": "/cohere/v2/chat",
    "runner": "/pooling",
    "convert": "/pooling",
    "pooler_config": "/pooling",
    "io_processor_plugin": "/pooling",
    "enable_flash_late_interaction": "/score",
    "enable_sleep_mode": "/sleep",
    "sleep_mode_offload_cudagraph": "/sleep",
    "sleep_preserve_parameter_names": "/sleep",
    "enable_nccl_comm_suspend": "/sleep",
    "profiler_config": "/start_profile",
    "weight_transfer_config": "/update_weights",
    "enable_elastic_ep": "/scale_elastic_ep",
    "elastic_ep_max_dp_size": "/scale_elastic_ep",
    "enable_fault_tolerance": "/fault_tolerance/apply",
    "fault_tolerance_config": "/fault_tolerance/apply",
}
"""For each option, the first of vLLM's routes that it is about. prismoe has none of these routes."""

ONE_PROCESS = "prismoe runs only one HTTP process"
NO_LORA = "prismoe serves no LoRA adapters; merge the adapter into the checkpoint"
NO_TOOLS = "prismoe runs no tools"
OTHER_PARSER = "prismoe reads HTTP with another parser, which has other limits"
OTHERS = {
    "headless": ONE_PROCESS,
    "grpc": ONE_PROCESS,
    "grpc_port": ONE_PROCESS,
    "api_server_count": ONE_PROCESS,
    "data_parallel_multi_port_external_lb": ONE_PROCESS,
    "data_parallel_supervisor_port": ONE_PROCESS,
    "dp_supervisor_probe_interval_s": ONE_PROCESS,
    "dp_supervisor_probe_timeout_s": ONE_PROCESS,
    "dp_supervisor_probe_failure_threshold": ONE_PROCESS,
    "lora_modules": NO_LORA,
    "default_mm_loras": NO_LORA,
    "tool_server": NO_TOOLS,
    "h11_max_incomplete_event_size": OTHER_PARSER,
    "h11_max_header_count": OTHER_PARSER,
}
"""For each other option, why it is refused."""

HARMLESS: dict[str, tuple[Any, ...]] = {
    "api_server_count": (1,),
    "runner": ("generate",),
    "convert": ("none",),
}
"""Values that are accepted besides the default, because they need no feature that prismoe leaves out."""


def refuse_unserved(args: Namespace, parser: ArgumentParser) -> None:
    """Raise ValueError with a sentence if an option is for a feature that prismoe leaves out."""
    reasons = {name: f"prismoe has no route {route}" for name, route in ROUTES.items()} | OTHERS
    for name, reason in reasons.items():
        value = getattr(args, name)
        if value != parser.get_default(name) and value not in HARMLESS.get(name, ()):
            option = "--" + ("no-" if value is False else "") + name.replace("_", "-")
            raise ValueError(f"{reason}: leave out {option}.")
