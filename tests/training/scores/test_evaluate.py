"""A checkpoint finds the right answers as likely as one question at a time would."""

import io
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from prismoe.training.data.cases import Case, Exam
from prismoe.training.data.tokenizer import build_tokenizer
from prismoe.training.model.checkpoint import export
from prismoe.training.model.moe_llava import MoELLaVA, prompt_tokens, upcycle
from prismoe.training.scores.evaluate import Asker
from tests.training.model.test_moe_llava import SMALL, SMALL_TOWER


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, format="PNG")
    return file.getvalue()


EXAM = Exam(
    [
        Case("s", 0, "name", "What is this?", "dog", (0,)),
        Case("s", 1, "name", "What is this?", "cat", (1,)),
        Case("s", 1, "place of a thing", "Where is the cat?", "bottom right", (1,)),
    ],
    {0: png("red"), 1: png("blue")},
)


@pytest.fixture(scope="module")
def asker(tmp_path_factory: pytest.TempPathFactory) -> Asker:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = SMALL.model_copy(update={"vocab_size": len(tokenizer)})
    folder: Path = tmp_path_factory.mktemp("evaluate") / "checkpoint"
    export(upcycle(MoELLaVA(config, SMALL_TOWER), (0, 2)), tokenizer, folder)
    return Asker(folder)


@torch.inference_mode()
def test_perplexity_is_that_of_the_answers_tokens(asker: Asker) -> None:
    logs = []
    for case in EXAM.cases:
        prompt = asker.prompt(case.question)
        answer = [*asker.tokenizer(f" {case.answer}").input_ids, asker.end]
        for number, token in enumerate(answer):
            tokens = prompt_tokens(torch.tensor([prompt + answer[:number]]), asker.image)
            logits_BSY, _ = asker.model(asker.picture(EXAM.png[case.picture])[None], tokens)
            logs.append(logits_BSY[0, -1].log_softmax(dim=0)[token].item())
    assert len(logs) == 2 + 2 + 3
    assert asker.perplexity(EXAM) == pytest.approx(math.exp(-sum(logs) / len(logs)), rel=1e-4)


def test_every_picture_is_routed_once(asker: Asker) -> None:
    for layer in asker.routings(EXAM):
        assert layer.segment_T.unique().tolist() == [-1, 0, 1]
        assert (layer.segment_T >= 0).sum() == 2 * SMALL_TOWER.tokens
