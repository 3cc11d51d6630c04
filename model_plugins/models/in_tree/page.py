"""Prints docs/models.md, made of the table."""

from collections.abc import Sequence

from prismoe.model_plugins.models.in_tree.table import IN_TREE, Model
from prismoe.model_plugins.models.moe_llava.families import FAMILIES

START = """\
# Models

Any mixture-of-experts vision-language model of vLLM's is served as vLLM serves it, and prismoe shows how its
text, images, videos and sounds load its experts, layer by layer, but for the few below that are *not seen*.
`prismoe serve Qwen/Qwen3-VL-30B-A3B-Instruct` serves one.
`GET /v1/routing` of the running server says at once what is seen of its model, and what is not and why; the
log says so at the start.

This page is made by `make models-page` of [a table in the code](../model_plugins/models/in_tree/table.py).

| status | what it means |
| --- | --- |
| exact | it was run with tiny random weights on CPU, and its counts are those of another implementation |
| read | vLLM's code was read, and by it the counts should be exact; it was not run, or its remark says so |
| not seen | no series tells of its experts, and the start says why |

Nothing was run on a GPU, and no model of vLLM's with the weights that its row names. *Gate* is what
`/v1/routing` says of a layer's router; a checkpoint may set it otherwise. A model with a gate that is *the
model's own function* has no entropy, RPV and near ties; its experts are counted like any other's.

## MoE-LLaVA

All [policies](routers.md) can route these. [Serving](serving.md) says what their folders hold.

"""

VLLM = """
## vLLM's own

These route as they were trained to (policy `native`), or by one of the
[policies](routers.md#under-a-models-own-gate) that hold under any gate. Qwen3-VL-MoE, GLM-4.5V, Qwen3.5-MoE
and Gemma 4 were run under six of them, and compared with transformers by the same rule (Qwen3.5-MoE with its
own logits). What is *exact* was run under both of vLLM's runners,
V1 and V2, and compared with transformers, if its remark says nothing else. Qwen3-VL-MoE and GLM-4.5V were
also run in chunks that cut images, with the prefix cache cold and warm, eight requests at a time, compiled,
and on two tensor-parallel ranks.

"""

END = """
A model that is not in the table is served too. If vLLM's `MoERunner` computes its experts they are counted
like the others'; if it has none, or others, the start says that nothing of its routing is shown.

## Which tokens count as what

A token has the modality of the image, video or sound whose embedding stands in its place, by vLLM's name for
it. What only surrounds it (the start and end of an image, a video's timestamps) is text, unless the model
makes embeddings for that too: then the remarks say so.

What is computed for a request counts, tokens of rejected drafts included (`--speculative-config`); the
experts of a drafter don't.

## Quantised experts

prismoe stands beside the router, before the kernel of the experts, whatever their weights are. What vLLM
takes for them on GPUs [was looked at](cuda.md#vllms-own). On CPU none was run: of vLLM 0.32's kernels in
`fused_moe/experts/cpu_moe.py` those for FP8, MXFP4, INT4 and INT8 experts want a processor with AMX tiles
(`_supports_current_device`), one for FP8 wants AMX-FP8, AMD's want the package zentorch, and the rest are for
Arm and Power. Where these tests run there is no AMX: vLLM chooses no kernel for FP8 experts, and of INT8
experts it says `No Int8 MoE backend supports the deployment configuration`.

## What is refused, and where nothing is shown

- The start is refused with a sentence under pipeline and prefill context parallelism, micro-batches
  (`--enable-dbo`), `--enable-elastic-ep` (nobody would count in engines that come later),
  `--kv-sharing-fast-prefill` (some layers then see a part of a step's tokens) and `--enable-prompt-embeds`
  (such tokens have no modality); on CPU also under expert and data parallelism and with `--enable-lora` (vLLM
  has that on GPUs alone); under a policy with `--enable-lora` everywhere (vLLM's LoRA experts take the
  model's own number of experts).
- Policies that were calibrated refuse other weights while the server runs: their thresholds hold for those of
  the start.
- Nothing of the routing is shown where vLLM gathers or splits a step's tokens over ranks before it routes
  them, and where a kernel routes by itself and can't tell the experts that it chose.
- At the start a made-up step is routed and counted. Where a layer's router doesn't tell all the experts that
  its tokens use, or the counter has other sums, the model is served under `native` and nothing of its routing
  is shown; under a policy, or with a shadow, the start is refused. `/v1/routing` or the refusal names the
  layer and the figures.
"""

MOE_LLAVA = [
    Model(tuple(family.architectures), checkpoints, "softmax, renormalised", tested=True)
    for family, checkpoints in zip(
        FAMILIES,
        [
            ("LanguageBind/MoE-LLaVA-Phi2-2.7B-4e",),
            ("LanguageBind/MoE-LLaVA-StableLM-1.6B-4e",),
            ("LanguageBind/MoE-LLaVA-Qwen-1.8B-4e",),
            (),
            (),
        ],
        strict=True,
    )
]


def page() -> str:
    """The page as it has to be."""
    return START + table(MOE_LLAVA) + VLLM + table(IN_TREE) + END


def table(models: Sequence[Model]) -> str:
    """The rows of a table, in Markdown."""
    rows = [
        "| architecture | checkpoints, some | gate | status | remarks |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*rows, *map(_row, models)]) + "\n"


def _row(model: Model) -> str:
    names, checkpoints = (", ".join(f"`{name}`" for name in part) for part in model[:2])
    remarks = " ".join(part for part in (model.unseen, model.remarks) if part)
    return f"| {names} | {checkpoints} | {model.gate} | {model.status} | {remarks} |".replace("|  |", "| – |")


if __name__ == "__main__":
    print(page(), end="")
