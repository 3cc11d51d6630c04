"""vLLM's worker, extended to record and count each step's routing."""

from functools import partial
from typing import Any

from vllm.logger import init_logger
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from prismoe.kernels.modalities import MODALITIES
from prismoe.model_plugins.moe_layer.attached.attach import NOT_SHOWN, SPLIT
from prismoe.model_plugins.moe_layer.attached.native import NativeRouting
from prismoe.model_plugins.moe_layer.attached.policies import AttachedPolicies
from prismoe.model_plugins.moe_layer.attached.split_experts import SplitRouting
from prismoe.model_plugins.moe_layer.experts.unused_slots import check_unused_slots
from prismoe.model_plugins.moe_layer.kernel_check import PLAIN_KERNELS, kernels_found
from prismoe.model_plugins.moe_layer.model_routing import PolicyRouting, kernel_name, runners_of
from prismoe.model_plugins.moe_layer.self_check import REQUESTS, check_counts
from prismoe.model_plugins.vllm_seams.check import check
from prismoe.model_plugins.vllm_seams.engine import (
    dummy_step,
    experts_sink,
    language_model,
    native_router,
    step_watch,
    vision_chunks,
)
from prismoe.model_plugins.vllm_seams.engine.dummy_step import dummy_step_tokens, take_dummy_step
from prismoe.model_plugins.worker.calls import RoutingCalls
from prismoe.model_plugins.worker.engine_checks import check_native_engine
from prismoe.model_plugins.worker.engine_options import operator_policies, shadow_policies
from prismoe.model_plugins.worker.settings import KERNELS_KEY

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker  # type: ignore[assignment]

REFUSED_POLICY = "The {} policy can't be used. {} Leave it out to serve the model as vLLM does."
REFUSED_MODEL = (
    "The model can't be routed correctly. {} Try --enforce-eager, which compiles nothing, and on a GPU "
    f"{PLAIN_KERNELS}=1 in the environment, which routes in plain PyTorch."
)

logger = init_logger("vllm.prismoe.worker")


class RoutedWorker(RoutingCalls, PlatformWorker):
    """The worker to name in vLLM's `worker_cls`."""

    def load_model(self, **options: Any) -> None:
        """Load the model, and attach to its routers."""
        # Layers have as many slots as the policy or the model's router uses; with fewer, slots stay unused.
        if current_platform.is_cuda() and operator_policies(self.vllm_config) is not None:
            from prismoe.model_plugins.moe_layer.experts.gpu_experts import use_in_all_models

            use_in_all_models()
        check(dummy_step.NEEDS)
        super().load_model(**options)
        runner = self.model_runner
        model: Any = runner.get_model()
        routing = getattr(model, "routing", None)
        if isinstance(routing, PolicyRouting):
            for layer in runners_of(model):
                policy = routing.in_force.layers[layer.layer_id].policy
                if not policy.uses_all_slots:
                    check_unused_slots(layer, policy.policy)
            routing.watch(runner, model.embed_text)
        else:
            check([*native_router.NEEDS, *experts_sink.NEEDS, *step_watch.NEEDS, *language_model.NEEDS])
            check_native_engine(self.vllm_config)
            architecture = self.vllm_config.model_config.architecture
            if architecture == vision_chunks.ARCHITECTURE:
                check(vision_chunks.NEEDS)
                vision_chunks.name_chunks(runner, self.vllm_config.model_config)
            operator = operator_policies(self.vllm_config)
            if operator is None:
                shadow = shadow_policies(self.vllm_config)
                native = SplitRouting if architecture in SPLIT else NativeRouting
                routing = native(self.vllm_config, model, self._modalities(), shadow)
            else:
                routing = AttachedPolicies(self.vllm_config, model, self._modalities(), operator)
        routing.kernels = {layer.layer_id: kernel_name(layer) for layer in runners_of(model)}
        self.routing = routing
        additional: Any = self.vllm_config.additional_config
        additional[KERNELS_KEY] = dict(kernels_found())

    def compile_or_warm_up_model(self) -> Any:
        """Warm up, check the counts, and restart counting at zero.

        On CUDA vLLM warms up with made-up requests, which look real here. Raises ValueError where a policy's
        experts are counted wrongly.
        """
        times = super().compile_or_warm_up_model()
        if self.routing.layers:
            self._check_counts()
        self.routing.reset_load()
        return times

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step, and count it. vLLM's dummy and warm-up steps do not call this."""
        num_tokens = scheduler_output.total_num_scheduled_tokens
        counts = num_tokens > 0 and len(self.routing.layers) > 0
        if counts and not self.model_runner.supports_mm_inputs:
            self.routing.step.tokens.mark(None, [], num_tokens)  # the model embeds text by itself
        output = super().execute_model(scheduler_output)
        if counts:
            self.routing.end_step()
        return output

    def reload_weights(self, *args: Any, **options: Any) -> None:
        """Load other weights into the model, whose routers stay watched (`_check_reload`)."""
        self._check_reload()
        super().reload_weights(*args, **options)

    def start_weight_update(self) -> None:
        """Begin an update with weights that a trainer sends (`_check_reload`)."""
        self._check_reload()
        super().start_weight_update()

    def _check_reload(self) -> None:
        """Raise ValueError where policies were calibrated for the weights that the model was loaded with."""
        if isinstance(self.routing, PolicyRouting):
            return
        for policies in (operator_policies(self.vllm_config), shadow_policies(self.vllm_config)):
            if policies is not None and policies.calibrated_for is not None:
                raise ValueError(
                    "The routing policy was calibrated for the model's present weights, and can't be used "
                    "with others: start without it to reload weights, or start again with the other weights."
                )

    def _check_counts(self) -> None:
        """Count a made-up step. With wrong counts, `native` shows nothing, and other routing is refused."""
        runner, routing = self.model_runner, self.routing
        scheduler = self.vllm_config.scheduler_config
        requests = min(REQUESTS, scheduler.max_num_seqs)
        num_tokens = dummy_step_tokens(runner, requests, scheduler.max_num_batched_tokens)
        wrong = check_counts(routing, num_tokens, partial(take_dummy_step, runner, num_tokens))
        if wrong is None:
            logger.info_once(
                "The self-check at the start counted a made-up step of %d tokens correctly in all of the %d "
                "MoE layers.",
                num_tokens,
                len(routing.layers),
            )
        elif routing.routed_by == "native" and len(routing.counted()) == 1:
            why, model = f"{wrong} {NOT_SHOWN}", runner.get_model()
            # The watchers of the routers stay, since graphs write to their buffers, but nothing reads these.
            self.routing = NativeRouting(self.vllm_config, model, self._modalities(), found_wrong=why)
        elif isinstance(routing, PolicyRouting):
            raise ValueError(REFUSED_MODEL.format(wrong))
        else:
            which = "shadow" if routing.routed_by == "native" else "routing"
            raise ValueError(REFUSED_POLICY.format(which, wrong))

    def _modalities(self) -> list[str]:
        model = self.vllm_config.model_config
        if not model.is_multimodal_model:
            return ["text"]
        info = MULTIMODAL_REGISTRY.get_processing_info(model)
        taken = [name for name, most in info.allowed_mm_limits.items() if most]
        allowed = vision_chunks.media_of(model.architecture, taken)
        order = [*MODALITIES, *sorted({*allowed} - {*MODALITIES})]
        return [name for name in order if name == "text" or name in allowed]
