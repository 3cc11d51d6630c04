"""What is sent to a server: each scenario is a phase of a load test, run by `vllm bench serve`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prismoe.loadtests.target import Target

MOST_IMAGES = 16
RATIOS = (4, 8, 16, 32)
"""Vision:text token ratios of EquiRoute (Jin 2026, abstract)."""

Positive = Annotated[int, Field(gt=0)]


class Scenario(BaseModel):
    """One phase. Its requests are seeded: the same scenario sends the same requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    requests: Positive
    text_tokens: Positive = 32
    """Random words that a request asks with."""
    answer_tokens: Positive = 32
    """Tokens that each answer runs to."""
    images: Annotated[int, Field(ge=0, le=MOST_IMAGES)] = 0
    """Random pictures in a request."""
    varied: bool = False
    """Whether pictures (none to twice as many) and lengths (half to three halves) differ by request."""
    image_side: Positive = 224
    image_set: Path | None = None
    """Requests in a file instead of random ones: vLLM's custom_image JSON lines."""
    at_once: Positive | None = 8
    """The most requests under way; None for no bound."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """Requests a second; None sends as fast as `at_once` allows."""
    burstiness: Annotated[float, Field(gt=0)] = 1.0
    """1: as a Poisson process; below, in bursts; above, more evenly."""
    seed: int = 0

    @model_validator(mode="after")
    def _check_bound(self) -> Self:
        if self.at_once is None and self.rate is None:
            raise ValueError("A scenario needs at_once or rate: without both, all requests come at once.")
        if self.image_set is not None and (self.images or self.varied):
            raise ValueError("A scenario takes its pictures from image_set or makes them: leave one out.")
        return self

    def arguments(self, target: Target, objective: Sequence[str]) -> list[str]:
        """This scenario as arguments of `vllm bench serve`; `objective` as its --goodput takes it."""
        options: dict[str, object] = {
            "backend": "openai-chat",
            "endpoint": "/v1/chat/completions",
            "base-url": target.url,
            "model": target.model,
            "served-model-name": target.model,
            "tokenizer": target.tokenizer,
            "num-prompts": self.requests,
            "request-rate": self.rate or "inf",
            "burstiness": self.burstiness,
            "seed": self.seed,
            "temperature": 0,
            "percentile-metrics": "ttft,tpot,itl,e2el",
            "metric-percentiles": "50,90,99",
        }
        if self.at_once is not None:
            options["max-concurrency"] = self.at_once
        flags = ["ignore-eos", "save-detailed", "disable-tqdm"]
        if self.image_set is not None:
            options |= {
                "dataset-name": "custom_image",
                "dataset-path": self.image_set,
                "custom-output-len": self.answer_tokens,
            }
            flags += ["enable-multimodal-chat", "disable-shuffle"]
        else:
            options |= {
                "dataset-name": "random-mm",
                "random-input-len": self.text_tokens,
                "random-output-len": self.answer_tokens,
                "random-range-ratio": 0.5 if self.varied else 0.0,
                "random-mm-base-items-per-request": self.images,
                "random-mm-num-mm-items-range-ratio": 1.0 if self.varied else 0.0,
                "random-mm-limit-mm-per-prompt": json.dumps({"image": MOST_IMAGES}),
                "random-mm-bucket-config": f"{{({self.image_side}, {self.image_side}, 1): 1.0}}",
            }
        given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return [*given, *(f"--{flag}" for flag in flags), "--goodput", *objective]


def mixed_traffic(name: str, requests: int, **changes: object) -> Scenario:
    """What the ramp and the soak send: no, one or two pictures, questions and answers of many lengths."""
    settings = {"text_tokens": 32, "answer_tokens": 32, "images": 1, "varied": True}
    return Scenario.model_validate(settings | {"name": name, "requests": requests} | changes)


def at_ratio(ratio: int, requests: int, target: Target) -> Scenario | None:
    """Requests whose vision tokens are `ratio` times their text tokens, with as few pictures as that takes.

    Text is the chat template's, the question's and the answer's but its last token, which is not computed.
    None where not even the most pictures of a request suffice.
    """
    answer = 4
    for images in range(1, MOST_IMAGES + 1):
        text = round(images * target.image_tokens / ratio)
        question = text - target.template_tokens - images * target.tokens_beside_image - (answer - 1)
        if question >= 1:
            return Scenario(
                name=f"mixed-{ratio}:1",
                requests=requests,
                text_tokens=round(question),
                answer_tokens=answer,
                images=images,
            )
    return None


def standard(target: Target, scale: float, image_set: Path) -> list[Scenario]:
    """The scenarios of `make load`, but for the ramp. `scale` multiplies how many requests each has;
    `image_set` holds one picture with many questions."""

    def count(requests: int) -> int:
        return max(1, round(requests * scale))

    mixed = (at_ratio(ratio, count(24), target) for ratio in RATIOS)
    scenarios = [
        Scenario(name="chat-text", requests=count(48), text_tokens=48, answer_tokens=48),
        Scenario(name="one-image", requests=count(48), images=1),
        Scenario(name="many-images", requests=count(16), images=6),
        *(scenario for scenario in mixed if scenario is not None),
        Scenario(name="repeated-image", requests=count(48), image_set=image_set),
        Scenario(name="long-decode", requests=count(12), images=1, answer_tokens=384),
        Scenario(name="burst", requests=count(64), images=1, at_once=None, rate=16, burstiness=0.1),
    ]
    # No scenario repeats a request of another, which would be cached.
    return [scenario.model_copy(update={"seed": seed}) for seed, scenario in enumerate(scenarios)]
