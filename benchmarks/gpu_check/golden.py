"""What vLLM's V2 runner answers and counts on CPU, in float32: `golden.json`.

`python -m prismoe.benchmarks.gpu_check.golden` makes the file anew, in the repository and on a host without a
GPU: Triton's interpreter runs what V2 has in Triton. It takes some minutes.
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
    """Tokens of a request."""

    prompt: list[int]
    """With one token for each of an image's."""
    tokens: list[int]
    """Of the answer."""


class Golden(_Model):
    """What one case of `cases.CASES` gives."""

    weights: str
    """The digest of the checkpoint's (`weights_digest`)."""
    answers: list[Answer]
    expert_tokens: list[list[list[int]]]
    """By MoE layer, modality and expert: how often it was used."""
    tail_tokens: list[int]
    """By MoE layer."""


def read() -> Mapping[str, Golden]:
    """By the name of its case."""
    found = json.loads(GOLDEN.read_text())
    return {name: Golden.model_validate(each) for name, each in found["cases"].items()}


def main() -> None:
    """Write the file."""
    if os.environ.get(V2) != "1":  # what sets it runs as Python starts
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
