"""Writes docs/cuda.md from the expected results of `make test-cuda-config`."""

import json
from pathlib import Path
from typing import Any

EXPECTED = Path(__file__).with_name("expected")
"""The results of `chosen` by compute capability."""
CAPABILITIES = ("8.0", "9.0", "10.0", "12.0")
"""The capabilities of Ampere, Hopper, and Blackwell in data centres and in workstations."""
NAMES = {
    "phi": "MoE-LLaVA-Phi",
    "stablelm": "MoE-LLaVA-StableLM",
    "qwen": "MoE-LLaVA-Qwen",
    "qwen2": "MoE-LLaVA-Qwen2",
    "qwen3-vl-moe": "Qwen3-VL-MoE",
    "glm4v-moe": "GLM-4.5V",
}
USES = ("all slots", "unused slots")
TEXT = Path(__file__).with_name("page.md")


def page() -> str:
    """The page in Markdown."""
    by_capability = {name: json.loads((EXPECTED / f"{name}.json").read_text()) for name in CAPABILITIES}
    return TEXT.read_text().format(
        engine=engine_table(by_capability),
        moe_llava=moe_llava_table(by_capability),
        in_tree=in_tree_table(by_capability).rstrip(),
    )


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def engine_table(by_capability: dict[str, Any]) -> str:
    engines = {name: chosen["engine"] for name, chosen in by_capability.items()}
    settings = list(engines["8.0"])
    rows = [[name, *(shown(engine[setting]) for setting in settings)] for name, engine in engines.items()]
    return table(["compute capability", *settings], rows)


def shown(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"`{value}`"


def moe_llava_table(by_capability: dict[str, Any]) -> str:
    rows = [
        [
            NAMES[family],
            quantisation,
            use,
            *(code(chosen["MoE-LLaVA"][family][quantisation][use]) for chosen in by_capability.values()),
        ]
        for family, by_quantisation in by_capability["8.0"]["MoE-LLaVA"].items()
        for quantisation in by_quantisation
        for use in USES
    ]
    return table(["model", "quantised", "policy", *CAPABILITIES], rows)


def in_tree_table(by_capability: dict[str, Any]) -> str:
    rows = []
    for name, by_quantisation in by_capability["8.0"]["vLLM's own"].items():
        for quantisation in by_quantisation:
            found = [chosen["vLLM's own"][name][quantisation] for chosen in by_capability.values()]
            rows.append([NAMES[name], quantisation, "`native`", *(native(one["native"]) for one in found)])
            rows += [[NAMES[name], quantisation, use, *(routed(one[use]) for one in found)] for use in USES]
    return table(["model", "quantised", "policy", *CAPABILITIES], rows)


def native(seen: dict[str, Any] | None) -> str:
    if seen is None:
        return "–"
    reported = "" if not seen["routes by itself"] else " (sink)" if seen["has a sink"] else " (not seen)"
    return code(seen["kernel"]) + reported


def routed(by_choice: dict[str, str]) -> str:
    """vLLM's default kernel, and if prismoe refuses it, the first accepted choice."""
    named = by_choice["auto"]
    if not named.startswith("("):
        return code(named)
    others = [choice for choice, kernel in by_choice.items() if kernel[0] not in "(-"]
    return f"{code(named)} or `{others[0]}`" if others else code(named)


def code(kernel: str) -> str:
    """A kernel's name as code, with brackets around it if it has them."""
    if kernel == "-":
        return "–"
    return f"(`{kernel[1:-1]}`)" if kernel.startswith("(") else f"`{kernel}`"


if __name__ == "__main__":
    print(page(), end="")
