"""vLLM's options as a server gets them, for tests without an engine."""

from argparse import Namespace
from functools import cache

from prismoe.server.commands.engine_options import parse_engine_options
from prismoe.server.settings import ServeSettings


@cache
def options(*arguments: str) -> Namespace:
    """What these arguments become."""
    return parse_engine_options(ServeSettings(engine_options=arguments))
