"""vLLM's options as a server gets them, for tests without an engine."""

from argparse import Namespace
from functools import cache

from prismoe.server.commands.vllm_arguments import parse_vllm_arguments
from prismoe.server.settings import ServeSettings


@cache
def options(*arguments: str) -> Namespace:
    """What these arguments become."""
    return parse_vllm_arguments(ServeSettings(engine_options=arguments))
