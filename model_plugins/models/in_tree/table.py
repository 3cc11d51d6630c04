"""vLLM's mixture-of-experts vision-language models, and what prismoe sees of each.

It follows vLLM's registry and the code of its models, release 0.32. `page` makes docs/models.md of it.
"""

from typing import Literal, NamedTuple

Status = Literal["exact", "read", "not seen"]

OWN = "the model's own function"
SOFTMAX = "softmax, renormalised"
SCALED = "softmax, renormalised, times a scale of each expert's own"
BIASED = "sigmoid, with a bias, renormalised"
DEEPSEEK = f"softmax; or {BIASED}"


class Model(NamedTuple):
    """Architectures that share their MoE layers and the way their media become tokens."""

    architectures: tuple[str, ...]
    """Their names in vLLM's registry, which are those of a checkpoint's config.json."""
    checkpoints: tuple[str, ...]
    """Some of their names on the Hub."""
    gate: str
    """As `Gate` says it. What a checkpoint sets may differ from one to the next."""
    remarks: str = ""
    tested: bool = False
    """Whether tests run it with tiny random weights and compare each count with transformers'."""
    unseen: str | None = None
    """What `attach.why_unseen` says where nothing of its routing is shown."""

    @property
    def status(self) -> Status:
        """What can be said of its counts."""
        if self.unseen is not None:
            return "not seen"
        return "exact" if self.tested else "read"


IN_TREE: list[Model] = [
    Model(
        ("Qwen3VLMoeForConditionalGeneration",),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3-VL-235B-A22B-Instruct"),
        SOFTMAX,
        "A video's timestamps are text, but with `--video-pruning-rate` they count as video.",
        tested=True,
    ),
    Model(
        ("Qwen3_5MoeForConditionalGeneration",),
        ("Qwen/Qwen3.5-35B-A3B", "Qwen/Qwen3.5-397B-A17B"),
        SOFTMAX,
        "A video's timestamps: as for Qwen3-VL. It was compared with its own logits, in bfloat16 on V1.",
        tested=True,
    ),
    Model(
        ("Glm4vMoeForConditionalGeneration",),
        ("zai-org/GLM-4.5V", "zai-org/GLM-4.6V"),
        BIASED,
        "A video's frames count as video, although the prompt has the image's token for them.",
        tested=True,
    ),
    Model(
        ("Gemma4ForConditionalGeneration",),
        ("google/gemma-4-26B-A4B-it",),
        SCALED,
        "The frames of a video count as video, its timestamps as text.",
        tested=True,
    ),
    Model(
        ("Qwen3OmniMoeForConditionalGeneration",),
        ("Qwen/Qwen3-Omni-30B-A3B-Instruct",),
        SOFTMAX,
        "A video's sound counts as audio, also between its frames (`use_audio_in_video`).",
        tested=True,
    ),
    Model(
        ("Ernie4_5_VLMoeForConditionalGeneration",),
        ("baidu/ERNIE-4.5-VL-28B-A3B-PT", "baidu/ERNIE-4.5-VL-424B-A47B-PT"),
        "softmax, with a bias, renormalised",
        "A layer's first half of experts is for text, the second for images and videos; each has a router. "
        "The marks around an image or video count as text, but use vision experts. It routes only by "
        "`native`, and shows no near ties. Its processor comes with the checkpoint "
        "(`--run-checkpoint-code`). On CPU vLLM leaves the bias out, and needs "
        '`--compilation-config \'{"custom_ops": ["none"]}\'`. It was compared without a bias.',
        tested=True,
    ),
    Model(
        ("DiffusionGemmaForBlockDiffusion",),
        ("google/diffusiongemma-26B-A4B-it",),
        SCALED,
        "Like Gemma 4. A position counts each time it is computed, once per denoising step.",
    ),
    Model(
        ("InternVLForConditionalGeneration",),
        ("OpenGVLab/InternVL3_5-30B-A3B-HF",),
        SOFTMAX,
        "It was run with Qwen3-MoE. A video's frames count as video, although transformers has the image's "
        "token for them.",
        tested=True,
    ),
    Model(
        ("InternVLChatModel", "InternS1ForConditionalGeneration"),
        (
            "OpenGVLab/InternVL3_5-30B-A3B",
            "OpenGVLab/InternVL3_5-GPT-OSS-20B-A4B-Preview",
            "internlm/Intern-S1",
        ),
        SOFTMAX,
        "It routes like its text model: Qwen3-MoE or gpt-oss. A kernel of gpt-oss that routes by itself is "
        "seen if it reports its choice, but no confidence is shown.",
    ),
    Model(
        ("InternS1ProForConditionalGeneration",),
        ("internlm/Intern-S1-Pro",),
        OWN,
        "Softmax, and the best experts of each group. No confidence is shown.",
    ),
    Model(
        ("InternS2PreviewForConditionalGeneration", "InternS2MobiusForConditionalGeneration"),
        ("internlm/Intern-S2-Preview", "internlm/Intern-S2-Mobius"),
        SOFTMAX,
        "Like Qwen3.5.",
    ),
    Model(
        ("Ovis2_6_MoeForCausalLM",),
        ("AIDC-AI/Ovis2.6-30B-A3B",),
        SOFTMAX,
        "An image's indicators count as image. transformers has no such model to compare counts with.",
    ),
    Model(("AriaForConditionalGeneration",), ("rhymes-ai/Aria",), SOFTMAX, tested=True),
    Model(
        ("KimiVLForConditionalGeneration",),
        ("moonshotai/Kimi-VL-A3B-Instruct", "moonshotai/Kimi-VL-A3B-Thinking"),
        BIASED,
        "Its decoder is computed like Kimi-K2.5's. transformers has no such model to compare counts with.",
    ),
    Model(
        ("KimiK25ForConditionalGeneration",),
        ("moonshotai/Kimi-K2.5",),
        BIASED,
        "vLLM takes an image, or four frames of a video, as a `vision_chunk`. It counts as video if it has "
        "several frames or the prompt calls it `video`, as Kimi's prompts do, and otherwise as image. Its "
        "timestamp is text.",
        tested=True,
    ),
    Model(
        ("KimiK3ForConditionalGeneration",),
        ("moonshotai/Kimi-K3",),
        "sigmoid, with a bias",
        "The checkpoint sets groups, renormalisation and factor. With `--moe-backend deep_gemm_mega_moe` it "
        "has no MoE layer that can be seen.",
    ),
    Model(
        ("DeepseekVLV2ForCausalLM",),
        ("deepseek-ai/deepseek-vl2-tiny", "deepseek-ai/deepseek-vl2-small", "deepseek-ai/deepseek-vl2"),
        DEEPSEEK,
        "An image's newlines and separators count as image. It was not run, because vLLM fixes the size of "
        "its image tower, which is not tiny, and transformers has no such model to compare counts with.",
    ),
    Model(
        ("DeepseekOCRForCausalLM", "DeepseekOCR2ForCausalLM", "UnlimitedOCRForCausalLM"),
        ("deepseek-ai/DeepSeek-OCR", "deepseek-ai/DeepSeek-OCR-2", "baidu/Unlimited-OCR"),
        DEEPSEEK,
        "An image's newlines and separators count as image. If the decoder is dense, nothing is shown. None "
        "was run, because vLLM fixes the size of their image towers, which are not tiny.",
    ),
    Model(
        ("DeepseekV4ForConditionalGeneration", "DeepseekV41ForCausalLM"),
        ("deepseek-ai/DeepSeek-V4-Flash-Vision-Exp",),
        OWN,
        "Square root of softplus, with a separate bias for image tokens; the first layers choose by token "
        "id. No confidence is shown. Markers around an image's rows are text in V4 and image in V4.1. With "
        "MegaMoE it has no MoE layer that can be seen. vLLM has it only on GPUs.",
    ),
    Model(
        ("Mistral3ForConditionalGeneration",),
        ("mistralai/Mistral-Large-3-675B-Instruct-2512",),
        SOFTMAX,
        "It routes like its text model; it was run with Mixtral. `[IMG_BREAK]` and `[IMG_END]` are text. "
        "Most checkpoints are dense.",
        tested=True,
    ),
    Model(
        ("PixtralForConditionalGeneration",),
        ("mistralai/Mistral-Large-3-675B-Instruct-2512",),
        SOFTMAX,
        "For checkpoints in Mistral's own format. Otherwise like Mistral 3.",
    ),
    Model(
        ("Llama4ForConditionalGeneration",),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "meta-llama/Llama-4-Maverick-17B-128E-Instruct"),
        OWN,
        "One expert, weighted by the sigmoid of its logit. No confidence is shown. Tile separators are text.",
        tested=True,
    ),
    Model(
        ("Step3VLForConditionalGeneration",),
        ("stepfun-ai/step3",),
        "softmax",
        "An image's newlines are text. Renormalised if the checkpoint says so.",
    ),
    Model(
        ("Step3p7ForConditionalGeneration",),
        ("stepfun-ai/Step-3.7-Flash",),
        "softmax or sigmoid, renormalised",
        "The checkpoint sets function, bias and factor. An image's newlines are text. vLLM's decoder "
        "refuses the configuration that transformers makes, so no tiny checkpoint was run.",
    ),
    Model(
        (
            "NemotronH_Nano_VL_V2",
            "NemotronH_Nano_Omni_Reasoning_V3",
            "NemotronH_Super_Omni_Reasoning_V3",
            "NemotronH_Omni_Reasoning_V3",
        ),
        ("nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16",),
        BIASED,
        "A video's frame labels count as video. Its sound follows the video, and counts as audio. vLLM needs "
        "the configuration that comes with a checkpoint as code; with transformers' own it does not start.",
    ),
    Model(
        ("MiMoV2OmniForCausalLM",),
        ("XiaomiMiMo/MiMo-V2.5-Omni",),
        BIASED,
        "The sound inside a video counts as video, because vLLM treats both as one item.",
    ),
    Model(
        ("Dots3NoteForCausalLM",),
        (),
        DEEPSEEK,
        "The sound inside a video counts as video. The experts of its image tower are not counted.",
    ),
    Model(
        ("MiniMaxM3SparseForConditionalGeneration",),
        ("MiniMaxAI/MiniMax-M3",),
        BIASED,
        "Then multiplied by the checkpoint's factor. A video's timestamps are text. vLLM has it only on "
        "GPUs.",
    ),
    Model(
        ("Lfm2VlForConditionalGeneration",),
        ("LiquidAI/LFM2-VL-8B-A1B",),
        BIASED,
        "It was run, and its counts differ from transformers': on CPU vLLM computes other logits from a "
        "prompt's second token on, and so routes differently. Most checkpoints are dense.",
    ),
    Model(
        ("Cohere2VisionForConditionalGeneration",),
        ("CohereLabs/command-a-plus-05-2026",),
        f"{SOFTMAX}; or {OWN}",
        "Its own function is a sigmoid, for which no confidence is shown. The line breaks between tiles are "
        "text. Most checkpoints are dense.",
        tested=True,
    ),
    Model(
        ("BailingMoeV3VLForConditionalGeneration",),
        ("inclusionAI/Ling-3.0-flash-VL",),
        "sigmoid, with a bias, in the best groups, renormalised",
        "Then multiplied by the checkpoint's factor.",
    ),
    Model(
        ("Glm5NextForConditionalGeneration",),
        (),
        BIASED,
        "The checkpoint sets the function. A video's frames: as for GLM-4.5V.",
    ),
    Model(("Qwen4ExpForConditionalGeneration",), (), SOFTMAX),
    Model(
        ("InklingForConditionalGeneration",),
        (),
        OWN,
        "No confidence is shown. Its shared experts are not counted.",
    ),
    Model(
        ("TransformersMultiModalMoEForCausalLM",),
        (),
        f"as the model's; or {OWN}",
        "For models that vLLM runs through transformers (`--model-impl transformers`); it was run with "
        "GLM-4.5V. If transformers computes the gate, no confidence is shown.",
        tested=True,
    ),
    Model(
        ("Moondream3ForCausalLM", "HfMoondream"),
        ("moondream/moondream3-preview",),
        "softmax over the chosen logits",
        unseen="Moondream3ForCausalLM has no MoE layer that vLLM's MoERunner computes.",
    ),
]
