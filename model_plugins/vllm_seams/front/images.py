"""Changes vLLM's cache of processed images, one half of which is in the front and the other in the engine."""

from typing import Any

from vllm.engine.protocol import EngineClient

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [
    Needed(
        "vllm.renderers.base:BaseRenderer.__init__",
        attributes=("_mm_processor_cache", "_mm_processor_only_cache"),
    )
]


def send_images_always(engine: EngineClient) -> None:
    """Send the engine each image's tensors, even if an earlier request had the same image.

    vLLM's front considers an image sent once it is processed. If that request is then refused, or only its
    tokens are counted, the engine never gets the image, and fails the next request that has it.
    """
    renderer: Any = engine.renderer
    # This cache keeps processed images, and still sends them.
    renderer._mm_processor_cache = renderer._mm_processor_only_cache
