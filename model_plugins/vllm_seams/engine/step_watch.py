"""Reports the requests of each step of vLLM's model runner, before the step runs."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [
    Needed("vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs", ("scheduler_output",)),
    Needed("vllm.v1.worker.gpu.model_runner:GPUModelRunner.prepare_inputs", ("scheduler_output",)),
]


class StepRequests(NamedTuple):
    """The requests of a step, in the order of their rows."""

    names: Sequence[str]
    counts: Sequence[int]  # of each request's tokens in the step
    computed: Sequence[int]  # of each request's tokens before the step
    new: Sequence[Any]  # vLLM's NewRequestData of requests that are new to the runner
    known: Collection[str]  # all requests that the runner keeps, in the step or not


def watch_steps(runner: Any, begin: Callable[[StepRequests], None]) -> Callable[[], None]:
    """Call `begin` before each step from now on. Returns a function that ends this, last watcher first."""
    is_v1 = hasattr(runner, "_prepare_inputs")  # CPU; CUDA has the runner that vLLM calls V2
    name = "_prepare_inputs" if is_v1 else "prepare_inputs"
    prepare = getattr(runner, name)

    def prepare_and_begin(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = prepare(scheduled, *args, **kwargs)
        batch = runner.input_batch if is_v1 else inputs
        names = list(batch.req_ids)
        computed = batch.num_computed_tokens_cpu if is_v1 else batch.num_computed_tokens_np
        step = StepRequests(
            names,
            [scheduled.num_scheduled_tokens[request] for request in names],
            computed[: len(names)].tolist(),
            scheduled.scheduled_new_reqs,
            runner.requests if is_v1 else runner.req_states.req_id_to_index,
        )
        begin(step)
        return inputs

    before = vars(runner).get(name)  # another watcher's
    setattr(runner, name, prepare_and_begin)
    return lambda: delattr(runner, name) if before is None else setattr(runner, name, before)
