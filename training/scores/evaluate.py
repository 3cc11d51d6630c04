"""Scores an exported checkpoint with the training model, and measures its routing by modality."""

import io
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from prismoe.kernels.routing import TEXT, routing_probability_variance
from prismoe.training.data.cases import Case, Exam
from prismoe.training.data.questions import PLAIN, TASKS
from prismoe.training.data.tokenizer import END, IMAGE
from prismoe.training.losses import chosen_experts
from prismoe.training.model.checkpoint import load
from prismoe.training.model.moe_llava import LayerDecision, MoELLaVA, generate, prompt_tokens
from prismoe.training.scores.measured import LayerScores
from prismoe.training.tower_training import normalise

ANSWER_LIMIT = 12  # tokens


class Asker:
    """Answers questions about pictures with a checkpoint, as a server does."""

    def __init__(self, folder: Path) -> None:
        """Load the checkpoint."""
        self.model: MoELLaVA = load(folder)
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.image, self.end = (self.tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, END))
        self.side = self.model.model.image_tower.image_tower.config.image_size

    def picture(self, png: bytes) -> Tensor:
        """A square picture as `[3, H, W]`, processed like CLIP's processor does."""
        image = (
            Image.open(io.BytesIO(png))
            .convert("RGB")
            .resize((self.side, self.side), Image.Resampling.BICUBIC)
        )
        return normalise(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)

    def prompt(self, question: str) -> list[int]:
        """The tokens of the chat template's prompt, with one image token for each patch."""
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        text = self.tokenizer.apply_chat_template([message], tokenize=False)
        patches = self.model.model.image_tower.image_tower.config.tokens
        return list(self.tokenizer(text.replace(IMAGE, IMAGE * patches), add_special_tokens=False).input_ids)

    def answers(self, exam: Exam, batch: int = 64) -> list[str]:
        """The greedy answer to each case."""
        by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        for number, case in enumerate(exam.cases):
            prompt = self.prompt(case.question)
            by_length[len(prompt)].append((number, prompt))
        replies: dict[int, str] = {}
        for group in by_length.values():
            for start in range(0, len(group), batch):
                numbers, prompts = zip(*group[start : start + batch], strict=True)
                image_BCHW = torch.stack([self.picture(exam.png[exam.cases[n].picture]) for n in numbers])
                reply_BS = generate(
                    self.model,
                    image_BCHW,
                    torch.tensor(prompts),
                    self.image,
                    self.end,
                    ANSWER_LIMIT,
                    _tasks(exam.cases[n] for n in numbers),
                )
                texts = self.tokenizer.batch_decode(reply_BS, skip_special_tokens=True)
                replies |= {number: text.strip() for number, text in zip(numbers, texts, strict=True)}
        return [replies[number] for number in range(len(exam.cases))]

    def routing(self, exam: Exam) -> list[LayerScores]:
        """The routing scores of each MoE layer, over the test pictures."""
        layers = zip(self.model.config.moe_layers, self.routings(exam), strict=True)
        return [_measure(layer, routing) for layer, routing in layers]

    @torch.inference_mode()
    def routings(self, exam: Exam) -> list[LayerDecision]:
        """The decisions of each MoE layer for the question how many things there are in each test picture."""
        image_BCHW = torch.stack([self.picture(png) for png in exam.png.values()])
        token_BS = torch.tensor(self.prompt(PLAIN["count"])).expand(len(image_BCHW), -1)
        task_B = torch.full((len(image_BCHW),), TASKS["count"])
        _, routings = self.model(image_BCHW, prompt_tokens(token_BS, self.image, task_B))
        return routings

    @torch.inference_mode()
    def perplexity(self, exam: Exam, batch: int = 64) -> float:
        """Of the right answers' tokens, each after those before it."""
        by_length: dict[tuple[int, int], list[tuple[Case, list[int]]]] = defaultdict(list)
        for case in exam.cases:
            answer = self.tokenizer(f" {case.answer}", add_special_tokens=False).input_ids
            prompt = self.prompt(case.question)
            by_length[len(prompt), len(answer) + 1].append((case, [*prompt, *answer, self.end]))
        losses = []
        for (_, answered), group in by_length.items():
            for start in range(0, len(group), batch):
                cases, texts = zip(*group[start : start + batch], strict=True)
                image_BCHW = torch.stack([self.picture(exam.png[case.picture]) for case in cases])
                token_BS = torch.tensor(texts)
                tokens = prompt_tokens(token_BS, self.image, _tasks(cases), answered)
                logits_BSY, _ = self.model(image_BCHW, tokens)
                logits_BAY, target_BA = logits_BSY[:, -answered - 1 : -1], token_BS[:, -answered:]
                losses.append(
                    functional.cross_entropy(logits_BAY.flatten(0, 1), target_BA.flatten(), reduction="none")
                )
        return torch.cat(losses).mean().exp().item()


def _tasks(cases: Iterable[Case]) -> Tensor:
    return torch.tensor([TASKS[case.topic] for case in cases])


def _measure(layer: int, routing: LayerDecision) -> LayerScores:
    is_vision_T, is_text_T = routing.segment_T >= 0, routing.segment_T == TEXT
    rpv_T = routing_probability_variance(routing.probs_TE).double()
    vision = rpv_T[is_vision_T]
    used_TE = chosen_experts(routing)

    def load_of(is_chosen_T: Tensor) -> list[float]:
        used_E = used_TE[is_chosen_T].sum(0)
        return (used_E / used_E.sum()).tolist()

    return LayerScores(
        layer=layer,
        tail_share=routing.is_tail_T[is_vision_T].double().mean().item(),
        rpv_skew=((vision - vision.mean()) ** 3).mean().item() / vision.std().item() ** 3,
        rpv_vision=vision.mean().item(),
        rpv_text=rpv_T[is_text_T].mean().item(),
        load_vision=load_of(is_vision_T),
        load_text=load_of(is_text_T),
    )
