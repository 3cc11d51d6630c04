"""vLLM's worker, which also tells the routing layer of the requests in each step."""

from typing import Any

from vllm.platforms import current_platform

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker  # type: ignore[assignment]


class RoutedWorker(PlatformWorker):
    """To be given as `worker_cls`."""

    def load_model(self, **options: Any) -> None:
        """Load the model, and have its routing watch the runner."""
        super().load_model(**options)
        model: Any = self.model_runner.get_model()
        model.routing.watch(self.model_runner, model.embed_text)
