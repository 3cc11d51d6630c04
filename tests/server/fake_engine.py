"""An engine that only answers questions about its expert load."""

from typing import Any

LOAD = {
    "layers": [0, 2],
    "expert_tokens": [[[6, 4, 0, 10], [32, 40, 8, 80]], [[5, 5, 5, 5], [64, 32, 16, 16]]],
    "tokens": [[10, 64], [10, 64]],
    "tail_tokens": [16, 0],
    "tokens_by_experts": [[[0, 10, 0, 0], [0, 48, 0, 16]], [[0, 10, 0, 0], [0, 64, 0, 0]]],
    "scored_tokens": [[10, 64], [10, 64]],
    "near_ties": [[1, 8], [0, 6]],
    "routing_entropy": [[5.0, 48.0], [7.5, 32.0]],
    "routing_variance": [[0.5, 1.0], [0.25, 3.0]],
}
NOTHING = {
    "layers": [0, 2],
    "expert_tokens": [[[0] * 4] * 2] * 2,
    "tokens": [[0, 0]] * 2,
    "tail_tokens": [0, 0],
    "tokens_by_experts": [[[0] * 4] * 2] * 2,
    "scored_tokens": [[0, 0]] * 2,
    "near_ties": [[0, 0]] * 2,
    "routing_entropy": [[0.0, 0.0]] * 2,
    "routing_variance": [[0.0, 0.0]] * 2,
}


class FakeEngine:
    """Answers with what it holds; an exception is raised."""

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
