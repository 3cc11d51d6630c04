"""Engines that vLLM configures with and without `VLLM_PLUGINS=prismoe`."""

from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform

from prismoe.model_plugins.worker import plain_vllm
from prismoe.model_plugins.worker.engine_options import ROUTED_WORKER, engine_options
from tests.model_plugins.engine import PHI
from tests.model_plugins.in_tree.checkpoints import make_checkpoint

OWN_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint("glm4v-moe", tmp_path_factory.mktemp("glm")))


def configured(model: str, **options: Any) -> VllmConfig:
    return EngineArgs(model=model, **options).create_engine_config()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the platform's changes to a configuration after the test."""
    monkeypatch.setattr(current_platform, "check_and_update_config", current_platform.check_and_update_config)
    plain_vllm.watch_experts()


def test_vllm_chooses_its_own_worker_by_default(glm: str) -> None:
    config = configured(glm)
    assert config.parallel_config.worker_cls == OWN_WORKER
    assert config.additional_config == {}


@pytest.mark.usefixtures("watched")
def test_the_worker_and_the_compile_caches_key_are_prismoes(glm: str) -> None:
    config = configured(glm, additional_config={"prismoe": {"routes": True}, "other": 1})
    assert config.parallel_config.worker_cls == ROUTED_WORKER
    # The key has only those of prismoe's settings that change a graph.
    assert config.additional_config == {"prismoe": {"routing": None, "shadow": None}, "other": 1}
    shadow = {"shadow": {"policy": "topk", "top_k": 1}}
    plain, routed, shadowed = (
        configured(glm, additional_config={"prismoe": more}).compute_hash()
        for more in ({}, {"routes": True}, shadow)
    )
    assert plain == routed != shadowed


def test_a_graph_made_without_prismoe_has_another_key(glm: str, request: pytest.FixtureRequest) -> None:
    stock = configured(glm).compute_hash()
    request.getfixturevalue("watched")
    assert configured(glm).compute_hash() != stock


@pytest.mark.usefixtures("watched")
def test_a_moe_llava_checkpoint_uses_a_policy_of_the_settings() -> None:
    policy = {"policy": "topk", "top_k": 1}
    config = configured(str(PHI), additional_config={"prismoe": {"routing": policy}})
    assert config.additional_config == engine_options(policy)["additional_config"]
    assert config.parallel_config.worker_cls == ROUTED_WORKER


@pytest.mark.usefixtures("watched")
def test_a_moe_llava_checkpoint_has_no_shadow() -> None:
    with pytest.raises(ValueError, match="leave the setting shadow out"):
        configured(str(PHI), additional_config={"prismoe": {"shadow": {"policy": "topk"}}})


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worker_cls": OWN_WORKER}, f"leave --worker-cls {OWN_WORKER} out"),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 1"),
        (
            {"additional_config": {"prismoe": {"routing": {"policy": "ltdr"}}}},
            "give it a threshold",
        ),
        ({"additional_config": {"prismoe": {"colour": 1}}}, "prismoe.colour: Extra inputs"),
        (
            {"additional_config": {"prismoe": {"routing": {"policy": "topk"}, "shadow": {"policy": "topk"}}}},
            "leave one of both out",
        ),
    ],
)
def test_impossible_settings_are_refused(glm: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configured(glm, **options)


@pytest.mark.usefixtures("watched")
def test_a_platform_without_a_prismoe_worker_keeps_its_own(glm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_vllm, "current_platform", type("Other", (), OTHER_PLATFORM)())
    assert configured(glm).parallel_config.worker_cls == OWN_WORKER


OTHER_PLATFORM = {
    "is_cpu": lambda self: False,
    "is_cuda_alike": lambda self: False,
    "device_name": "xpu",
}
