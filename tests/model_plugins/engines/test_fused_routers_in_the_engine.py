"""Every policy in vLLM with CUDA's router, in Triton's interpreter, compared with plain computation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM

from prismoe.model_plugins.moe_layer import model_routing
from prismoe.model_plugins.moe_layer.gpu_router import FusedRouter
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the patches are in this process only
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(model_routing, "router_class", lambda policy, num_experts: FusedRouter)
        with engine(checkpoint, limit_mm_per_prompt={"image": 2}, max_num_seqs=8) as llm:
            llm.apply_model(start_recording)
            yield llm


def test_the_engine_has_fused_routers(llm: LLM) -> None:
    def routers(model: Any) -> set[type]:
        return {type(router) for router in model.routing.routers.values()}

    assert llm.apply_model(routers) == [{FusedRouter}]
