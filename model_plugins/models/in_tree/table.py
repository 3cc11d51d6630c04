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
        "A video's frames are spelled with the image's token; they count as video.",
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
        "A video's sound is audio, also where it lies between its frames (use_audio_in_video).",
        tested=True,
    ),
    Model(
        ("Ernie4_5_VLMoeForConditionalGeneration",),
        ("baidu/ERNIE-4.5-VL-28B-A3B-PT", "baidu/ERNIE-4.5-VL-424B-A47B-PT"),
        "softmax, with a bias, renormalised",
        "A layer's first half of experts is for text, the second for images and videos, each with a router. "
        "The marks around an image or video are text that vision experts take. It routes by native alone, "
        "and tells no near ties. Its processor comes with the checkpoint (`--run-checkpoint-code`). On CPU "
        "vLLM leaves the bias out, and needs "
        '`--compilation-config \'{"custom_ops": ["none"]}\'`. It was compared without a bias.',
        tested=True,
    ),
    Model(
        ("DiffusionGemmaForBlockDiffusion",),
        ("google/diffusiongemma-26B-A4B-it",),
        SCALED,
        "As Gemma 4. A position counts each time it is computed, once a denoising step.",
    ),
    Model(
        ("InternVLForConditionalGeneration",),
        ("OpenGVLab/InternVL3_5-30B-A3B-HF",),
        SOFTMAX,
        "It was run with Qwen3-MoE. A video's frames count as video, though transformers spells them with "
        "the image's token.",
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
        "As the text model routes: Qwen3-MoE or gpt-oss. A kernel of gpt-oss that routes by itself is seen "
        "if it tells its choice; then no confidence is shown.",
    ),
    Model(
        ("InternS1ProForConditionalGeneration",),
        ("internlm/Intern-S1-Pro",),
        OWN,
        "Softmax, the best of each group: no confidence is shown.",
    ),
    Model(
        ("InternS2PreviewForConditionalGeneration", "InternS2MobiusForConditionalGeneration"),
        ("internlm/Intern-S2-Preview", "internlm/Intern-S2-Mobius"),
        SOFTMAX,
        "As Qwen3.5.",
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
        "Its decoder is computed as Kimi-K2.5's. transformers has no such model to compare counts with.",
    ),
    Model(
        ("KimiK25ForConditionalGeneration",),
        ("moonshotai/Kimi-K2.5",),
        BIASED,
        "vLLM takes an image, and each four frames of a video, as a `vision_chunk`. It counts as video where "
        "it has several frames or the prompt calls it `video`, as Kimi's prompts do; else as image. Its time "
        "is text.",
        tested=True,
    ),
    Model(
        ("KimiK3ForConditionalGeneration",),
        ("moonshotai/Kimi-K3",),
        "sigmoid, with a bias",
        "Groups, renormalisation and factor are the checkpoint's. With `--moe-backend deep_gemm_mega_moe` it "
        "has no MoE layer that can be seen.",
    ),
    Model(
        ("DeepseekVLV2ForCausalLM",),
        ("deepseek-ai/deepseek-vl2-tiny", "deepseek-ai/deepseek-vl2-small", "deepseek-ai/deepseek-vl2"),
        DEEPSEEK,
        "An image's newlines and separators count as image. vLLM gives it an image tower of one size, which "
        "is not tiny, and transformers has no such model to compare counts with.",
    ),
    Model(
        ("DeepseekOCRForCausalLM", "DeepseekOCR2ForCausalLM", "UnlimitedOCRForCausalLM"),
        ("deepseek-ai/DeepSeek-OCR", "deepseek-ai/DeepSeek-OCR-2", "baidu/Unlimited-OCR"),
        DEEPSEEK,
        "An image's newlines and separators count as image. Where the decoder is dense nothing is shown. "
        "vLLM gives them image towers of one size, which are not tiny: none was run.",
    ),
    Model(
        ("DeepseekV4ForConditionalGeneration", "DeepseekV41ForCausalLM"),
        ("deepseek-ai/DeepSeek-V4-Flash-Vision-Exp",),
        OWN,
        "Square root of softplus, with a bias of its own for image tokens; the first layers choose by token "
        "id: no confidence is shown. Markers around an image's rows are text in V4 and image in V4.1. With "
        "MegaMoE it has no MoE layer that can be seen. vLLM has it on GPUs alone.",
    ),
    Model(
        ("Mistral3ForConditionalGeneration",),
        ("mistralai/Mistral-Large-3-675B-Instruct-2512",),
        SOFTMAX,
        "As the text model routes; it was run with Mixtral. `[IMG_BREAK]` and `[IMG_END]` are text. Most "
        "checkpoints are dense.",
        tested=True,
    ),
    Model(
        ("PixtralForConditionalGeneration",),
        ("mistralai/Mistral-Large-3-675B-Instruct-2512",),
        SOFTMAX,
        "A checkpoint in Mistral's own format. Otherwise as Mistral 3.",
    ),
    Model(
        ("Llama4ForConditionalGeneration",),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "meta-llama/Llama-4-Maverick-17B-128E-Instruct"),
        OWN,
        "One expert by the sigmoid of its logit: no confidence is shown. Tile separators are text.",
        tested=True,
    ),
    Model(
        ("Step3VLForConditionalGeneration",),
        ("stepfun-ai/step3",),
        "softmax",
        "An image's newlines are text. Renormalised where the checkpoint says so.",
    ),
    Model(
        ("Step3p7ForConditionalGeneration",),
        ("stepfun-ai/Step-3.7-Flash",),
        "softmax or sigmoid, renormalised",
        "Function, bias and factor are the checkpoint's. An image's newlines are text. vLLM's decoder "
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
        "A video's frame labels count as video. Its sound follows behind it, and counts as audio. vLLM needs "
        "the configuration that a checkpoint brings as code; with transformers' own it does not start.",
    ),
    Model(
        ("MiMoV2OmniForCausalLM",),
        ("XiaomiMiMo/MiMo-V2.5-Omni",),
        BIASED,
        "The sound inside a video counts as video, for vLLM calls both one item.",
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
        "Then times a factor of the checkpoint's. A video's timestamps are text. vLLM has it on GPUs alone.",
    ),
    Model(
        ("Lfm2VlForConditionalGeneration",),
        ("LiquidAI/LFM2-VL-8B-A1B",),
        BIASED,
        "It was run, and its counts are not transformers': on CPU vLLM computes other logits from a prompt's "
        "second token on, and so routes otherwise. Most checkpoints are dense.",
    ),
    Model(
        ("Cohere2VisionForConditionalGeneration",),
        ("CohereLabs/command-a-plus-05-2026",),
        f"{SOFTMAX}; or {OWN}",
        "The second is a sigmoid: no confidence is shown. The line breaks between tiles are text. Most "
        "checkpoints are dense.",
        tested=True,
    ),
    Model(
        ("BailingMoeV3VLForConditionalGeneration",),
        ("inclusionAI/Ling-3.0-flash-VL",),
        "sigmoid, with a bias, in the best groups, renormalised",
        "Then times a factor of the checkpoint's.",
    ),
    Model(
        ("Glm5NextForConditionalGeneration",),
        (),
        BIASED,
        "The function is the checkpoint's. A video's frames: as for GLM-4.5V.",
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
        "Models that vLLM runs through transformers (`--model-impl transformers`); it was run with GLM-4.5V. "
        "Where transformers computes the gate, no confidence is shown.",
        tested=True,
    ),
    Model(
        ("Moondream3ForCausalLM", "HfMoondream"),
        ("moondream/moondream3-preview",),
        "softmax over the chosen logits",
        unseen="Moondream3ForCausalLM has no MoE layer that vLLM's MoERunner computes.",
    ),
]
