"""An engine that only answers questions about its expert load."""

from typing import Any

LOAD = {
    "layers": [0, 2],
    "expert_tokens": [[[6, 4, 0, 10], [32, 40, 8, 80]], [[5, 5, 5, 5], [64, 32, 16, 16]]],
    "tokens": [[10, 64], [10, 64]],
    "tail_tokens": [16, 0],
}


class FakeEngine:
    """Answers with what it holds; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    @property
    def errored(self) -> bool:
        return self.asked >= len(self.answers)

    async def ask(self, method: str) -> list[Any]:
        assert method == "prismoe_expert_load"
        answer = self.answers[self.asked]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, list) else [answer]
