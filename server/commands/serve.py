"""`prismoe serve` runs vLLM's engine and OpenAI endpoints, with prismoe's routes and metrics."""

import gc
from argparse import Namespace
from collections.abc import Sequence

from prismoe.server.commands.arguments import serve_parser, serve_settings
from prismoe.server.commands.interruption import StartSignals
from prismoe.server.environment import prepare_environment
from prismoe.server.errors import EngineFailed, StartRefused, explained, fail
from prismoe.server.logs.quiet import be_quiet

__all__ = ["serve", "serve_parser"]


def serve(arguments: Sequence[str]) -> int:
    """Serve until a signal or a failure, and return the exit status."""
    settings = serve_settings(arguments)
    StartSignals().take()
    prepare_environment(settings.model)
    be_quiet(settings.verbose, settings.engine_options)

    # vLLM reads the environment when it is imported.
    try:
        import uvloop
        from vllm.logger import configure_logging_from_args

        from prismoe.server.app.launch import run_server
        from prismoe.server.commands.vllm_arguments import parse_vllm_arguments

        args: Namespace = parse_vllm_arguments(settings)
    except Exception as error:
        return fail(explained(error))
    configure_logging_from_args(args)
    try:
        uvloop.run(run_server(args, settings))
    except (StartRefused, EngineFailed) as error:
        return fail(str(error))
    finally:
        # vLLM has frozen the heap to avoid pauses. If it stays frozen, libraries report leaks at the end.
        gc.unfreeze()
    return 0
