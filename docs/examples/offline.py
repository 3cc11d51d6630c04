"""Ask a model about a picture in this process with vLLM's `LLM`, and print how many tokens each expert got.

Run it without arguments: python offline.py
"""

from typing import Any

from PIL import Image
from vllm import LLM, SamplingParams

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.worker.engine_options import engine_options


def main() -> None:
    """Ask the bundled model. The name or folder of any other model works as well."""
    llm = LLM(str(bundled_checkpoint()), enforce_eager=True, max_model_len=512, **engine_options())
    picture = Image.open(bundled_checkpoint() / "pictures" / "maple-leaf.png")
    content = [{"type": "image_pil", "image_pil": picture}, {"type": "text", "text": "What is this?"}]
    chat: list[Any] = [{"role": "user", "content": content}]
    [answer] = llm.chat(chat, SamplingParams(temperature=0, max_tokens=16))
    print("Answer:", answer.outputs[0].text)

    load = llm.collective_rpc("prismoe_expert_load")[0]
    for layer, by_modality in zip(load["layers"], load["expert_tokens"], strict=True):
        for modality, tokens_E in zip(load["modalities"], by_modality, strict=True):
            print(f"Layer {layer}, {modality} tokens by expert:", *tokens_E)


if __name__ == "__main__":
    main()
