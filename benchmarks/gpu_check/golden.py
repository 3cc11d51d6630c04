"""The answers and counts of vLLM's V2 runner on CPU, in float32: `golden.json`.

`python -m prismoe.benchmarks.gpu_check.golden` writes the file again. Run it in the repository, on a host
without a GPU: Triton's interpreter runs V2's Triton kernels. It takes some minutes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from prismoe.benchmarks.gpu_check.run import dry_environment

GOLDEN = Path(__file__).with_name("golden.json")
V2 = "VLLM_USE_V2_MODEL_RUNNER"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(_Model):
    """The tokens of a request."""

    prompt: list[int]
    """The prompt's tokens, with the placeholders of its images."""
    tokens: list[int]
    """The answer's tokens."""


class Golden(_Model):
    """The results of one case of `cases.CASES`."""

    weights: str
    """The digest of the checkpoint's weights (`weights_digest`)."""
    answers: list[Answer]
    expert_tokens: list[list[list[int]]]
    """How often each expert was used, by MoE layer, modality and expert."""
    tail_tokens: list[int]
    """The number of tail tokens by MoE layer."""


def read() -> Mapping[str, Golden]:
    """The contents of the file, by the name of the case."""
    found = json.loads(GOLDEN.read_text())
    return {name: Golden.model_validate(each) for name, each in found["cases"].items()}


def main() -> None:
    """Write the file."""
    if os.environ.get(V2) != "1":  # tests/v2_runner's sitecustomize.py sets it when Python starts
        again = subprocess.run(
            [sys.executable, "-m", "prismoe.benchmarks.gpu_check.golden"],
            env={**os.environ, **dry_environment()},
        )
        sys.exit(again.returncode)
    from prismoe.benchmarks.gpu_check.cases import CASES
    from prismoe.benchmarks.gpu_check.engines import run

    found = {}
    for name, case in CASES.items():
        with case.folder() as folder:
            found[name] = run(case, folder, is_eager=True)[0].model_dump()
    origin = "vLLM's V2 runner on CPU, float32, eager: python -m prismoe.benchmarks.gpu_check.golden"
    GOLDEN.write_text(json.dumps({"origin": origin, "cases": found}) + "\n")


if __name__ == "__main__":
    main()
