"""Describes the host, and checks that it has what the other checks need."""

import platform
from importlib.metadata import entry_points

import torch
import triton
import vllm

from prismoe.benchmarks.gpu_check.check import Figures, Host
from prismoe.model_plugins.vllm_seams.check import all_needs, check


def described(host: Host) -> Figures:
    """The host's GPU and versions. Raises ValueError if something is missing."""
    if "prismoe" not in entry_points(group="vllm.general_plugins").names:
        raise ValueError(
            "vLLM doesn't find prismoe: install its wheel in this environment, or run "
            "pip install --no-deps --no-build-isolation . in the repository, which needs no network."
        )
    check(all_needs())
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "vllm": vllm.__version__,
    }
    if host.is_dry:
        return found
    if not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU here: run this on a host with one, or use --dry.")
    properties = torch.cuda.get_device_properties(0)
    return {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"} | found
