"""`task`: requests of one task share experts (LTDR, App. A.3, TASK; MoLA, arXiv 2406.09679)."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import one_hot

from prismoe.model_plugins.routing.request_policy import RequestPolicy, Requests

CERTAIN = 1e4
"""A logit so large that the other experts' probabilities are 0 in float32."""


class Task(RequestPolicy):
    """Top-k of a learned row of logits for the task whose label came with the request.

    LTDR's four tasks are captions, VQA, OCR and regions, each with an expert's label. With `experts`, one for
    each task, nothing is learned: a task uses only its expert, at weight 1. A request without a label gets
    `default_task`.
    """

    policy: Literal["task"] = "task"
    tasks: int = Field(default=4, ge=1)
    default_task: int = Field(default=0, ge=0)
    experts: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check_tasks(self) -> "Task":
        if self.default_task >= self.tasks:
            raise ValueError(f"default_task is {self.default_task}: give a label from 0 to {self.tasks - 1}")
        if self.experts is not None and len(self.experts) != self.tasks:
            raise ValueError(
                f"experts names {len(self.experts)} experts for {self.tasks} tasks: give one for each task"
            )
        if self.experts is not None and self.top_k != 1:
            raise ValueError("experts names one expert for each task: give top_k 1")
        return self

    def slots(self, num_experts: int) -> int:
        for expert in self.experts or ():
            if not 0 <= expert < num_experts:
                raise ValueError(f"experts names expert {expert}: the layer's are 0 to {num_experts - 1}.")
        return super().slots(num_experts)

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        return {"task_logits": (self.tasks, num_experts)} if self.experts is None else {}

    def request_logits(
        self, requests: Requests, parameters: Mapping[str, Tensor], num_experts: int
    ) -> Tensor:
        is_task_R = (requests.task_R >= 0) & (requests.task_R < self.tasks)
        task_R = torch.where(is_task_R, requests.task_R, self.default_task)
        if self.experts is None:
            return parameters["task_logits"][task_R]
        expert_of_task = torch.tensor(self.experts, device=task_R.device)
        return CERTAIN * one_hot(expert_of_task[task_R], num_experts).float()
