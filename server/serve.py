"""`prismoe serve`: vLLM's engine and its OpenAI endpoints, with prismoe's routes and metrics beside them."""

import gc
import signal
from argparse import Namespace
from typing import NoReturn

from prismoe.server.environment import prepare_environment
from prismoe.server.sentences import fail, sentence
from prismoe.server.settings import ServeSettings


def serve(settings: ServeSettings) -> int:
    """Serve until interrupted; the exit status."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, _end_start)
    prepare_environment(settings.model)

    # vLLM reads the environment when it is imported.
    import uvloop
    from vllm.logger import configure_logging_from_args

    from prismoe.server.engine import EngineFailed, StartRefused
    from prismoe.server.launch import run_server
    from prismoe.server.options import parse_engine_options

    try:
        args: Namespace = parse_engine_options(settings)
    except (ValueError, TypeError) as error:
        return fail(sentence(error))
    configure_logging_from_args(args)
    try:
        uvloop.run(run_server(args, settings))
    except (StartRefused, EngineFailed) as error:
        return fail(str(error))
    finally:
        # vLLM froze the heap against pauses; thawed, its libraries end without complaints of leaks.
        gc.unfreeze()
    return 0


def _end_start(signal_number: int, _: object) -> NoReturn:
    """End a start that is under way; vLLM's HTTP server replaces this once it runs."""
    # vLLM passes over a KeyboardInterrupt while it waits for its engine.
    raise SystemExit(128 + signal_number)
