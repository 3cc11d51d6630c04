"""vLLM has everything that prismoe needs, and a message names what has changed."""

import pytest

from prismoe.model_plugins.vllm_seams.check import Needed, VLLMChanged, all_needs, check

PROCESSOR = "vllm.v1.engine.output_processor:OutputProcessor"


def test_the_installed_vllm_has_everything() -> None:
    needs = all_needs()
    assert len(needs) > 20
    check(needs)


@pytest.mark.parametrize(
    "needed",
    [
        Needed("vllm.v1.engine.no_such_module:OutputProcessor"),
        Needed("vllm.v1.engine.output_processor:NoSuchClass.add_request"),
        Needed(f"{PROCESSOR}.no_such_method"),
        Needed(f"{PROCESSOR}.add_request", ("prompt", "request")),
        Needed(
            f"{PROCESSOR}.add_request", ("request", "prompt", "parent_req", "request_index", "queue", "more")
        ),
        Needed(f"{PROCESSOR}.add_request", attributes=("request_states", "no_such_attribute")),
    ],
)
def test_a_change_is_reported(needed: Needed) -> None:
    name = needed.name.replace(":", ".")
    with pytest.raises(VLLMChanged) as refused:
        check([Needed(f"{PROCESSOR}.add_request", ("request",)), needed])
    assert str(refused.value) == (
        f"vLLM's {name} is missing or has changed. prismoe is tested with vLLM 0.32; for vLLM 0.33, only "
        "names and signatures were checked. Install one of these."
    )


def test_a_static_method_and_a_function_are_found() -> None:
    check([Needed("vllm.utils.system_utils:decorate_logs", ("process_name",))])


def test_a_parameter_can_have_another_name_in_another_release() -> None:
    check([Needed("vllm.utils.system_utils:decorate_logs", ("name|process_name",))])
    with pytest.raises(VLLMChanged):
        check([Needed("vllm.utils.system_utils:decorate_logs", ("name|process",))])
