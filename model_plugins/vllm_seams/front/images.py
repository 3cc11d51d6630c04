"""vLLM's cache of processed images, one half of which is in the front and the other in the engine."""

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
    """Send the engine each image's tensors, whether or not an earlier request had the same image.

    vLLM's front takes an image for sent once it is processed. Where that request is then refused, or only its
    tokens are counted, the engine never gets the image, and fails the next request that has it.
    """
    renderer: Any = engine.renderer
    renderer._mm_processor_cache = renderer._mm_processor_only_cache  # keeps what it processed, and sends it
