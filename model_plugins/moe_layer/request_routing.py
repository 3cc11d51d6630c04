"""A request's own routing of its images: `mm_processor_kwargs: {"routing": {"tail_experts": 4}}`.

The numbers travel in additional columns of each image's embeddings. So they go wherever vLLM keeps or sends
an image (encoder cache, preemption, chunks), and vLLM's caches distinguish images of different routing, since
vLLM hashes an image together with its `mm_processor_kwargs`.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

NUMBERS = 2
"""How many numbers follow an image's embeddings: the experts of its tail tokens and of its head tokens."""
BASE = 256
"""Each number is stored as two digits to this base: bfloat16 holds whole numbers exactly only up to it."""
COLUMNS = 2 * NUMBERS


class RequestRouting(BaseModel):
    """The experts that a request asks for its vision tail and head tokens; None keeps the policy's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tail_experts: int | None = Field(default=None, ge=1)
    head_experts: int | None = Field(default=None, ge=1)


def asked_experts(mm_processor_kwargs: Mapping[str, object], most: int) -> tuple[int, int]:
    """The experts that a request asks for its tail and head tokens, 0 where it asks for none.

    `most` is the largest number that it may ask for. Raises ValueError with a message for the client.
    """
    if unknown := sorted(set(mm_processor_kwargs) - {"routing"}):
        raise ValueError(f"mm_processor_kwargs may only hold routing, not {', '.join(unknown)}.")
    if "routing" not in mm_processor_kwargs:
        return 0, 0
    if most == 0:
        raise ValueError(
            "The routing policy in force does not accept numbers of experts from requests: "
            "leave mm_processor_kwargs.routing out."
        )
    try:
        routing = RequestRouting.model_validate(mm_processor_kwargs["routing"])
    except ValidationError as error:
        raise ValueError(_sentence(error)) from error
    for name, experts in routing:
        if (experts or 0) > most:
            raise ValueError(
                f"mm_processor_kwargs.routing asks for {name} {experts}; this server allows up to {most}."
            )
    return routing.tail_experts or 0, routing.head_experts or 0


def _sentence(error: ValidationError) -> str:
    fault = error.errors()[0]
    place = ".".join(map(str, ("mm_processor_kwargs.routing", *fault["loc"])))
    if not fault["loc"]:
        return f"{place} has to be an object that holds tail_experts, head_experts or both."
    if fault["type"] == "extra_forbidden":
        return f"{place} is not known: a request may choose tail_experts and head_experts."
    return f"{place} has to be a whole number of experts, 1 or more."


def with_numbers(embeds_NTD: Tensor, asked_N2: Tensor) -> Tensor:
    """Append the numbers that each image asks for to its embeddings, `[N, T, D + 4]`."""
    digits_N4 = torch.cat([asked_N2 // BASE, asked_N2 % BASE], dim=-1)
    digits_NT4 = digits_N4.to(embeds_NTD)[:, None].expand(-1, embeds_NTD.shape[1], -1)
    return torch.cat([embeds_NTD, digits_NT4], dim=-1)


def without_numbers(images: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Split images into their embeddings, `[T, D]` each, and their numbers, `[T, 2]` each."""
    return [image[:, :-COLUMNS] for image in images], [_numbers(image[:, -COLUMNS:]) for image in images]


def _numbers(digits_T4: Tensor) -> Tensor:
    high_T2, low_T2 = digits_T4.int().split(NUMBERS, dim=-1)
    return high_T2 * BASE + low_T2
