"""Every policy in vLLM's V2 runner, compared with plain computation."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm import LLM

from tests.model_plugins.engine import engine, start_recording
from tests.model_plugins.engines.test_routers_in_the_engine import (  # noqa: F401  # they run on the engine below
    checkpoint,
    plain,
    test_a_mixed_batch_of_8,
    test_a_request_alone,
    test_the_load_counts_each_use_of_an_expert,
)


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:  # noqa: F811
    with engine(checkpoint, runner="v2", limit_mm_per_prompt={"image": 2}, max_num_seqs=8) as llm:
        llm.apply_model(start_recording)
        yield llm
