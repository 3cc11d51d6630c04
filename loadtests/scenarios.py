"""Scenarios: each is a phase of a load test, run by `vllm bench serve`."""

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
    """The requests of one phase. The same scenario always sends the same requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    requests: Positive
    text_tokens: Positive = 32
    """The number of random words in a request."""
    answer_tokens: Positive = 32
    """The number of tokens in each answer."""
    images: Annotated[int, Field(ge=0, le=MOST_IMAGES)] = 0
    """The number of random pictures in a request."""
    varied: bool = False
    """Whether requests differ in pictures (from none to twice as many) and lengths (half to 1.5 times)."""
    image_side: Positive = 224
    image_set: Path | None = None
    """A file with requests instead of random ones, as vLLM's custom_image JSON lines."""
    at_once: Positive | None = 8
    """The most requests at once; None for no limit."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """Requests a second; None for as many as `at_once` allows."""
    burstiness: Annotated[float, Field(gt=0)] = 1.0
    """1 is a Poisson process; smaller values give bursts, larger ones more even arrivals."""
    seed: int = 0

    @model_validator(mode="after")
    def _check_bound(self) -> Self:
        if self.at_once is None and self.rate is None:
            raise ValueError("A scenario needs at_once or rate: set one of them.")
        if self.image_set is not None and (self.images or self.varied):
            raise ValueError("A scenario with image_set can't have images or varied: leave them out.")
        return self

    def arguments(self, target: Target, objective: Sequence[str]) -> list[str]:
        """The scenario as arguments of `vllm bench serve`. `objective` has the form of its --goodput."""
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
    """The traffic of the ramp and the soak: zero to two pictures, questions and answers of many lengths."""
    settings = {"text_tokens": 32, "answer_tokens": 32, "images": 1, "varied": True}
    return Scenario.model_validate(settings | {"name": name, "requests": requests} | changes)


def at_ratio(ratio: int, requests: int, target: Target) -> Scenario | None:
    """Requests with `ratio` times as many vision tokens as text tokens, with as few pictures as possible.

    Text tokens are those of the chat template, of the question, and of the answer without its last token,
    which is not computed. Returns None if even the most pictures are not enough.
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
    """The scenarios of `make load` without the ramp.

    `scale` multiplies the number of requests. `image_set` has many questions about one picture.
    """

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
    # Each scenario has its own seed, since repeated requests would be cached.
    return [scenario.model_copy(update={"seed": seed}) for seed, scenario in enumerate(scenarios)]
