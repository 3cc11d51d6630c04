"""Writes the choices of vLLM and prismoe for a simulated GPU as JSON.

A process does this once, for one GPU: `python -m tests.cuda_config.chosen CAPABILITY FOLDER` writes
`chosen.json` into the folder, which has to be empty.
"""

import json
import sys
from pathlib import Path

from tests.cuda_config.faked_gpu import fake_gpu


def main(capability: str, folder: Path) -> None:
    """Write the choices for a GPU of this compute capability.

    vLLM caches what it learns about its platform, so a process can do this only once.
    """
    fake_gpu(capability, folder)
    from tests.cuda_config.engine import engine_of
    from tests.cuda_config.kernels import kernels_of_in_tree, kernels_of_moe_llava
    from tests.cuda_config.loading import kernels_with_weights

    chosen = {
        "engine": engine_of(),
        "with weights": kernels_with_weights(folder / "loaded"),
        "MoE-LLaVA": kernels_of_moe_llava(folder / "families"),
        "vLLM's own": kernels_of_in_tree(folder / "in_tree"),
    }
    (folder / "chosen.json").write_text(json.dumps(chosen, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
