"""The example offline.py, and the notebook's functions for a model in this process, with one engine."""

import runpy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from vllm import LLM

from tests.examples import EXAMPLES, code_of_notebook, run_notebook


@pytest.fixture(scope="module")
def ran() -> Iterator[tuple[list[str], LLM]]:
    """The output of offline.py, and the engine that it started."""
    started: list[LLM] = []
    printed: list[str] = []

    def start(*arguments: Any, **options: Any) -> LLM:
        started.append(LLM(*arguments, enable_prefix_caching=False, **options))
        return started[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vllm.LLM", start)
        patched.setattr("builtins.print", lambda *parts: printed.append(" ".join(map(str, parts))))
        runpy.run_path(str(EXAMPLES / "offline.py"), run_name="__main__")
    yield printed, started[0]
    started[0].llm_engine.engine_core.shutdown()


def test_offline_prints_an_answer_and_the_load_by_modality(ran: tuple[list[str], LLM]) -> None:
    printed, _ = ran
    assert printed[0].split() == ["Answer:", "maple", "leaf"]
    uses = {line.split(" tokens")[0]: sum(map(int, line.split(":")[1].split())) for line in printed[1:]}
    assert list(uses) == [f"Layer {layer}, {modality}" for layer in (0, 2) for modality in ("text", "image")]
    # A picture has 64 tokens. Each uses two experts, and a tail token uses all four.
    assert all(2 * 64 < uses[f"Layer {layer}, image"] < 4 * 64 for layer in (0, 2))
    assert uses["Layer 0, text"] == uses["Layer 2, text"] > 0


def test_the_figure_of_an_offline_model_has_the_counted_tokens(ran: tuple[list[str], LLM]) -> None:
    _, llm = ran
    definitions = [cell for cell in code_of_notebook() if "import " in cell or "def " in cell]
    notebook = run_notebook(definitions)
    before = np.array(llm.collective_rpc("prismoe_expert_load")[0]["expert_tokens"])
    found = notebook["by_layer"](*notebook["inspect_offline"](llm))
    counted = np.array(llm.collective_rpc("prismoe_expert_load")[0]["expert_tokens"]) - before
    for place, (_, _, uses) in enumerate(found.values()):
        assert [uses["text"].tolist(), uses["image"].tolist()] == counted[place].tolist()
