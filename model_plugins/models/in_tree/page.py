"""Prints docs/models.md, made of the table."""

from collections.abc import Sequence

from prismoe.model_plugins.models.in_tree.table import IN_TREE, Model
from prismoe.model_plugins.models.moe_llava.families import FAMILIES

START = """\
# Models

This page says for each model what prismoe can show of its routing, and what it refuses. Any
mixture-of-experts vision-language model of vLLM's is served as vLLM serves it, for example with
`prismoe serve Qwen/Qwen3-VL-30B-A3B-Instruct`. prismoe shows which experts its text, images, videos and
sounds use, layer by layer, except for the few models that are *not seen*. `GET /v1/routing` of the running
server says at once what is seen of its model, and what is not and why. The log says so at the start.

`make models-page` makes this page from
[a table in the code](../model_plugins/models/in_tree/table.py).

| status | what it means |
| --- | --- |
| exact | it was run with tiny random weights on CPU, and its counts equal those of another implementation |
| read | from reading vLLM's code, its counts should be exact; it was not run, unless its remark says so |
| not seen | no metric shows its experts, and the start says why |

Nothing was run on a GPU, and no model of vLLM's was run with the weights that its row names. *Gate* is what
`/v1/routing` says of a layer's router; a checkpoint may set another. If the gate is *the model's own
function*, prismoe shows no confidence: no entropy, RPV and near ties. The experts are still counted.

## MoE-LLaVA

All [policies](routers.md) can route these. [Serving](serving.md) says what their folders hold.

"""

VLLM = """
## vLLM's own

These route as they were trained to (policy `native`), or by one of the
[policies](routers.md#under-a-models-own-gate) that work with any gate. *Exact* models were run as follows,
unless a remark says otherwise:

- All were run under both of vLLM's runners, V1 and V2, and compared with transformers.
- Qwen3-VL-MoE, GLM-4.5V, Qwen3.5-MoE and Gemma 4 were also run under six of the policies, and compared with
  transformers by the same rule (Qwen3.5-MoE with its own logits).
- Qwen3-VL-MoE and GLM-4.5V were also run in chunks that cut images, with the prefix cache cold and warm, with
  eight requests at a time, compiled, and on two tensor-parallel ranks.

"""

END = """
A model that is not in the table is served too. If vLLM's `MoERunner` computes its experts, they are counted
like the others. Otherwise the start says that nothing of its routing is shown.

## Which tokens count as what

A token has the modality of the image, video or sound whose embedding it holds, by vLLM's name for it. Tokens
that only surround it (the start and end of an image, a video's timestamps) are text, unless the model makes
embeddings for them too; the remarks then say so.

Everything that is computed for a request counts, also tokens of rejected drafts (`--speculative-config`). The
experts of a draft model do not count.

## Quantised experts

prismoe attaches to the router, before the kernel of the experts, whatever the format of their weights is.
vLLM's choice of kernels for them on GPUs [was looked at](cuda.md#vllms-own), and none was run. On CPU none
was run either, because the machine of these tests has no AMX:

| kernels of vLLM 0.32 in `fused_moe/experts/cpu_moe.py` | need |
| --- | --- |
| for FP8, MXFP4, INT4 and INT8 experts | a processor with AMX tiles (`_supports_current_device`) |
| another one for FP8 | AMX-FP8 |
| AMD's | the package zentorch |
| the rest | Arm or Power |

There vLLM chooses no kernel for FP8 experts. For INT8 experts it says
`No Int8 MoE backend supports the deployment configuration`.

## What is refused, and where nothing is shown

The start is refused with a sentence in these cases:

| case | reason |
| --- | --- |
| pipeline and prefill context parallelism | prismoe needs the whole model and each prompt on one rank |
| micro-batches (`--enable-dbo`) | prismoe needs a step's tokens together |
| `--enable-elastic-ep` | engines that are added later would not be counted |
| `--kv-sharing-fast-prefill` | some layers then see only a part of a step's tokens |
| `--enable-prompt-embeds` | such tokens have no modality |
| on CPU: expert and data parallelism | vLLM's experts on CPU cannot do it ([scaling](scaling.md)) |
| on CPU: `--enable-lora` | vLLM has it only on GPUs |
| under a policy: `--enable-lora` | vLLM's LoRA experts use the model's own number of experts |

- Calibrated policies refuse new weights while the server runs, because their thresholds belong to the weights
  of the start.
- Nothing of the routing is shown if vLLM gathers or splits a step's tokens over ranks before it routes them,
  or if a kernel routes by itself and cannot report the experts that it chose.
- At the start, prismoe routes and counts a made-up step. If a layer's router does not report all experts that
  its tokens use, or the counter has other sums, a model under `native` is served and nothing of its routing
  is shown. Under a policy, or with a shadow, the start is refused. `/v1/routing` or the refusal names the
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
