"""Stock vLLM answers the tiny checkpoints as transformers does, so that counts can be held against either."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from tests.model_plugins.in_tree.chats import TEXT, TWO_PICTURES, VIDEO
from tests.model_plugins.in_tree.checkpoints import MODELS
from tests.model_plugins.in_tree.reference import answers
from tests.model_plugins.in_tree.tiny_model import BYTES

pytestmark = pytest.mark.engine

CHATS = {
    "qwen3-vl-moe": (TEXT, TWO_PICTURES),
    "glm4v-moe": (TEXT, TWO_PICTURES, VIDEO),
}
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, allowed_token_ids=list(range(BYTES)))


@contextmanager
def stock_engine(name: str, folder: Path) -> Iterator[LLM]:
    options: dict[str, Any] = {
        "dtype": str(MODELS[name].dtype).removeprefix("torch."),
        "enforce_eager": True,
        "max_model_len": 512,
        "limit_mm_per_prompt": {"image": 4, "video": 1},
        "disable_log_stats": True,
    }
    llm = LLM(str(folder), **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize("name", CHATS)
def test_the_tokens_are_those_of_transformers(name: str, checkpoint: Callable[[str], Path]) -> None:
    folder, chats = checkpoint(name), CHATS[name]
    with stock_engine(name, folder) as llm:
        outputs = llm.generate([chat.for_vllm(folder) for chat in chats], GREEDY)
    for output, answer in zip(outputs, answers(folder, chats), strict=True):
        assert output.prompt_token_ids == answer.prompt_ids
        assert list(output.outputs[0].token_ids) == answer.token_ids
