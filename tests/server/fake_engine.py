"""An engine that only answers queries about its expert load, and its possible answers."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from prismoe.server.metrics.routes import ServedLayer, ServedRouting

LOAD = {
    "modalities": ["text", "image"],
    "layers": [0, 2],
    "expert_tokens": [[[6, 4, 0, 10], [32, 40, 8, 80]], [[5, 5, 5, 5], [64, 32, 16, 16]]],
    "tokens": [[10, 64], [10, 64]],
    "tail_tokens": [16, 0],
    "tokens_by_experts": [[[0, 0, 10, 0, 0], [0, 0, 48, 0, 16]], [[0, 0, 10, 0, 0], [0, 0, 64, 0, 0]]],
    "scored_tokens": [[10, 64], [10, 64]],
    "near_ties": [[1, 8], [0, 6]],
    "routing_entropy": [[5.0, 48.0], [7.5, 32.0]],
    "routing_variance": [[0.5, 1.0], [0.25, 3.0]],
}
NOTHING = {
    "modalities": ["text", "image"],
    "layers": [0, 2],
    "expert_tokens": [[[0] * 4] * 2] * 2,
    "tokens": [[0, 0]] * 2,
    "tail_tokens": [0, 0],
    "tokens_by_experts": [[[0] * 5] * 2] * 2,
    "scored_tokens": [[0, 0]] * 2,
    "near_ties": [[0, 0]] * 2,
    "routing_entropy": [[0.0, 0.0]] * 2,
    "routing_variance": [[0.0, 0.0]] * 2,
}
UNSEEN: dict[str, list[Any]] = {name: [] for name in LOAD} | {"modalities": ["text", "image"]}
"""The load of a model whose MoE layers can't be observed."""
UNSEEN_WHY = "Moondream3's routing can't be seen: it picks its experts outside of vLLM's MoE layer."


def large_load(scale: int = 1) -> dict[str, Any]:
    """The load of 48 layers with 128 experts. A token uses 8, and later experts are used more."""
    layers, ramp = 48, [*range(-64, 0), *range(1, 65)]
    by_modality = [scale * 1600, scale * 8000, scale * 3200]
    used = [[tokens // 16 + scale * more for more in ramp] for tokens in by_modality]
    sampled = [tokens // 8 for tokens in by_modality]
    return {
        "modalities": ["text", "image", "video"],
        "layers": list(range(layers)),
        "expert_tokens": [used] * layers,
        "tokens": [by_modality] * layers,
        "tail_tokens": [0] * layers,
        "tokens_by_experts": [[[0] * 8 + [tokens] for tokens in by_modality]] * layers,
        "scored_tokens": [sampled] * layers,
        "near_ties": [[tokens // 10 for tokens in sampled]] * layers,
        "routing_entropy": [[3.5 * tokens for tokens in sampled]] * layers,
        "routing_variance": [[tokens / 1024 for tokens in sampled]] * layers,
    }


def routing(
    *layers: int,
    experts: int = 4,
    modalities: Sequence[str] = ("text", "image"),
    policies: Sequence[dict[str, Any]] = (),
) -> ServedRouting:
    """The routing of a model with these MoE layers: ltdr, or for each layer one of `policies`."""
    in_force = [
        ServedLayer(
            layer=layer,
            experts=experts,
            top_k=2,
            gate="softmax",
            kernel="CPUExperts",
            policy=policies[place] if policies else {"policy": "ltdr", "top_k": 2},
            sources={},
        )
        for place, layer in enumerate(layers)
    ]
    return ServedRouting(
        source="checkpoint",
        in_force="policy",
        switchable=False,
        architecture="MoELLaVAPhiForCausalLM",
        modalities=list(modalities),
        layers=in_force,
        not_supported=[] if layers else [UNSEEN_WHY],
    )


class FakeEngine:
    """Answers with its load. An exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    @property
    def errored(self) -> bool:
        return self.asked >= len(self.answers)

    async def ask(self, method: str, *args: Any) -> list[Any]:
        assert method == "prismoe_expert_load"
        answer = self.answers[self.asked]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, list) else [answer]


class SwitchedEngines:
    """Two data-parallel engines with policies that can be switched and get other thresholds."""

    errored = False

    def __init__(self, *policies: dict[str, Any]) -> None:
        self.routed_by = ["policy", "policy"]
        self.policies = [{layer: {**policy} for layer, policy in enumerate(policies)} for _ in self.routed_by]

    async def ask(self, method: str, *args: Any) -> list[Any]:
        if method == "prismoe_routing":
            return [
                routing(*policies, policies=[*policies.values()]).model_dump() for policies in self.policies
            ]
        [choice] = args
        if method == "prismoe_change_thresholds":
            before = deepcopy(self.policies)
            for policies in self.policies:
                for layer, thresholds in choice.items():
                    policies[layer] |= thresholds
            return [old != new for old, new in zip(before, self.policies, strict=True)]
        assert method == "prismoe_route_by"
        changes = [one != choice for one in self.routed_by]
        self.routed_by = [choice] * len(changes)
        return changes
