"""vLLM's command line. Its names are public, but in vLLM 0.33 they are in another place than in 0.32."""

from prismoe.model_plugins.vllm_seams.check import Needed

try:
    from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
except ImportError:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args

__all__ = ["NEEDS", "make_arg_parser", "validate_parsed_serve_args"]

NEEDS: list[Needed] = []
