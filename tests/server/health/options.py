"""vLLM's options for a server, for tests without an engine."""

from argparse import Namespace
from functools import cache

from prismoe.server.commands.vllm_arguments import parse_vllm_arguments
from prismoe.server.settings import ServeSettings


@cache
def options(*arguments: str) -> Namespace:
    """The options that these arguments give."""
    return parse_vllm_arguments(ServeSettings(engine_options=arguments))
