"""vLLM's worker, which also has each step's routing written down and counted."""

from typing import Any

from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from prismoe.kernels.modalities import MODALITIES
from prismoe.model_plugins.moe_layer.attached.attach import SPLIT
from prismoe.model_plugins.moe_layer.attached.native import NativeRouting
from prismoe.model_plugins.moe_layer.attached.policies import AttachedPolicies
from prismoe.model_plugins.moe_layer.attached.split_experts import SplitRouting
from prismoe.model_plugins.moe_layer.model_routing import PolicyRouting, kernel_name, runners_of
from prismoe.model_plugins.vllm_seams.check import check
from prismoe.model_plugins.vllm_seams.engine import (
    experts_sink,
    language_model,
    native_router,
    step_watch,
    vision_chunks,
)
from prismoe.model_plugins.worker.calls import RoutingCalls
from prismoe.model_plugins.worker.engine_checks import check_native_engine
from prismoe.model_plugins.worker.engine_options import operator_policies, shadow_policies

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker  # type: ignore[assignment]


class RoutedWorker(RoutingCalls, PlatformWorker):
    """To be given as `worker_cls`."""

    def load_model(self, **options: Any) -> None:
        """Load the model, and stand beside its routers."""
        # Of as many slots as a policy or the model's router may use, the other one leaves some out.
        if current_platform.is_cuda() and operator_policies(self.vllm_config) is not None:
            from prismoe.model_plugins.moe_layer.experts.gpu_experts import use_in_all_models

            use_in_all_models()
        super().load_model(**options)
        runner = self.model_runner
        model: Any = runner.get_model()
        routing = getattr(model, "routing", None)
        if isinstance(routing, PolicyRouting):
            routing.watch(runner, model.embed_text)
        else:
            check([*native_router.NEEDS, *experts_sink.NEEDS, *step_watch.NEEDS, *language_model.NEEDS])
            check_native_engine(self.vllm_config)
            if self.vllm_config.model_config.architecture == vision_chunks.ARCHITECTURE:
                check(vision_chunks.NEEDS)
                vision_chunks.name_chunks(runner, self.vllm_config.model_config)
            operator = operator_policies(self.vllm_config)
            if operator is None:
                shadow = shadow_policies(self.vllm_config)
                is_split = self.vllm_config.model_config.architecture in SPLIT
                native = SplitRouting if is_split else NativeRouting
                routing = native(self.vllm_config, model, self._modalities(), shadow)
            else:
                routing = AttachedPolicies(self.vllm_config, model, self._modalities(), operator)
        routing.kernels = {layer.layer_id: kernel_name(layer) for layer in runners_of(model)}
        self.routing = routing

    def compile_or_warm_up_model(self) -> Any:
        """Warm up, and count from zero: on CUDA vLLM makes requests up, which look like real ones here."""
        times = super().compile_or_warm_up_model()
        self.routing.reset_load()
        return times

    def execute_model(self, scheduler_output: Any) -> Any:
        """Take a step, and count it. Dummy and warm-up steps of vLLM's go past this."""
        num_tokens = scheduler_output.total_num_scheduled_tokens
        counts = num_tokens > 0 and len(self.routing.layers) > 0
        if counts and not self.model_runner.supports_mm_inputs:
            self.routing.step.tokens.mark(None, [], num_tokens)  # the model embeds text by itself
        output = super().execute_model(scheduler_output)
        if counts:
            self.routing.end_step()
        return output

    def _modalities(self) -> list[str]:
        model = self.vllm_config.model_config
        if not model.is_multimodal_model:
            return ["text"]
        info = MULTIMODAL_REGISTRY.get_processing_info(model)
        taken = [name for name, most in info.allowed_mm_limits.items() if most]
        allowed = vision_chunks.media_of(model.architecture, taken)
        order = [*MODALITIES, *sorted({*allowed} - {*MODALITIES})]
        return [name for name in order if name == "text" or name in allowed]
