"""Concepts, questions, tokenizer, chat template, and the training sequences from them."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prismoe.training.data.batches import IGNORED, Composer
from prismoe.training.data.cases import Case, score
from prismoe.training.data.concepts import CANDIDATES, CONCEPTS, SET_ASIDE
from prismoe.training.data.questions import PLAIN, TEMPLATES, Question, answer, ask, chat, fill, with_article
from prismoe.training.data.scenes import Box, Known, Scene, Thing, single
from prismoe.training.data.tokenizer import END, IMAGE, build_tokenizer
from prismoe.training.model.checkpoint import export
from prismoe.training.model.moe_llava import ModelConfig, MoELLaVA, prompt_tokens, upcycle
from prismoe.training.model.tower import TowerConfig

DOG = next(concept for concept in CONCEPTS if concept.name == "dog")
A_DOG = single(Known(DOG, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported checkpoint, whose tokenizer these tests read."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tower = TowerConfig(image_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = ModelConfig(vocab_size=len(tokenizer), hidden_size=32, num_attention_heads=4)
    path: Path = tmp_path_factory.mktemp("words") / "checkpoint"
    export(upcycle(MoELLaVA(config, tower), (0, 2)), tokenizer, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def test_concepts_are_unique() -> None:
    names = [candidate.name for candidate in CANDIDATES]
    emoji = [short_name for candidate in CANDIDATES for short_name in candidate.emoji]
    assert len(set(names)) == len(names) and len(set(emoji)) == len(emoji)
    assert set(names) >= SET_ASIDE
    category_of = {candidate.kind: candidate.category for candidate in CANDIDATES}
    assert all(category_of[candidate.kind] == candidate.category for candidate in CANDIDATES)


@pytest.mark.parametrize(
    ("name", "article"), [("dog", "a dog"), ("apple", "an apple"), ("cherries", "cherries"), ("corn", "corn")]
)
def test_articles(name: str, article: str) -> None:
    assert with_article(name) == article


def test_yes_and_no_are_right() -> None:
    draw = random.Random(0)
    things = {fill(template, DOG) for template in TEMPLATES["yes/no"]}
    asked = [ask(draw, "yes/no", DOG) for _ in range(200)]
    typed = {text.lower().rstrip("?") for text in things}
    for question in asked:
        assert (question.text.lower().rstrip("?") in typed) == (question.answer == "yes")
    assert 60 < sum(question.answer == "yes" for question in asked) < 140


def test_the_tokenizer_can_write_any_text(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("What is this?", " dog", "naïve 猫 🐱\n\tx  y", *(concept.name for concept in CONCEPTS)):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert tokenizer.convert_ids_to_tokens([0, 1]) == [END, IMAGE]


def test_most_names_have_a_token_for_each_word(tokenizer: PreTrainedTokenizerFast) -> None:
    long = [c.name for c in CONCEPTS if len(tokenizer.tokenize(f" {c.name}")) > len(c.name.split())]
    assert long == ["jack-o-lantern"]


def messages(content: object) -> list[dict[str, object]]:
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "dog"},
        {"role": "user", "content": "Which category is it?"},
    ]


def test_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    expected = (
        f"Be brief. USER: {IMAGE}\nWhat is this? ASSISTANT: dog{END}USER: Which category is it? ASSISTANT:"
    )
    for content in (f"{IMAGE}\nWhat is this?", parts):
        assert tokenizer.apply_chat_template(messages(content), tokenize=False) == expected


def template_ids(
    tokenizer: PreTrainedTokenizerFast, turns: Sequence[dict[str, str]], patches: int
) -> list[int]:
    text = tokenizer.apply_chat_template(list(turns), tokenize=False)
    return list(tokenizer(text.replace(IMAGE, IMAGE * patches), add_special_tokens=False).input_ids)


def test_a_training_turn_equals_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    composer = Composer(tokenizer, 4, tuple(TEMPLATES), 0)
    for concept in CONCEPTS[::10]:
        question = fill(PLAIN["kind"], concept)
        reply = answer("kind", concept)
        tokens, targets = composer.turn(Question("kind", question, reply))
        start = [*tokenizer("USER: ", add_special_tokens=False).input_ids, *[composer.image] * 4]
        served = template_ids(
            tokenizer,
            [
                {"role": "user", "content": f"{IMAGE}\n{question}"},
                {"role": "assistant", "content": reply},
            ],
            patches=4,
        )
        assert start + tokens == served
        answered = [target for target in targets if target != IGNORED]
        assert tokenizer.decode(answered) == f" {reply}{END}"


def test_a_turn_without_a_picture_equals_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    question = chat(random.Random(3))
    tokens, _ = Composer(tokenizer, 4, (), 0).turn(question)
    turns = [{"role": "user", "content": question.text}, {"role": "assistant", "content": question.answer}]
    assert tokens == template_ids(tokenizer, turns, patches=4)


def test_a_scene_in_words_has_a_token_of_a_name_or_none_for_each_patch(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    palm = next(concept for concept in CONCEPTS if concept.name == "palm tree")
    top_left, bottom_right = Box(-0.5, -0.5, 0.5), Box(0.5, 0.5, 0.5)
    scene = Scene((Thing(DOG, 0, top_left, "top left"), Thing(palm, 1, bottom_right, "bottom right")))
    composer = Composer(tokenizer, 16, tuple(TEMPLATES), seed=0)
    shown: list[set[str]] = [set() for _ in range(16)]
    for _ in range(50):
        batch = composer.words([scene])
        text = tokenizer.decode(batch.tokens.token_BS[0, :-1])
        grid = tokenizer.convert_ids_to_tokens(batch.tokens.token_BS[0])
        start = len(tokenizer(text.partition("USER: ")[0] + "USER: ", add_special_tokens=False).input_ids)
        for square, token in zip(shown, grid[start : start + 16], strict=True):
            square.add(token.replace("Ġ", ""))
    assert [square - {END} for square in shown] == [
        *({"dog"}, {"dog"}, set(), set()) * 2,
        *(set(), set(), {"palm"}, {"tree"}) * 2,
    ]
    assert all(END in square for square in shown)


@torch.inference_mode()
def test_turns_do_not_see_each_other(tokenizer: PreTrainedTokenizerFast) -> None:
    """Each of several questions after one picture has the same logits as alone."""
    torch.manual_seed(0)
    tower = TowerConfig(image_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = MoELLaVA(
        ModelConfig(vocab_size=len(tokenizer), hidden_size=32, num_attention_heads=4), tower
    ).eval()
    composer = Composer(tokenizer, tower.tokens, ("name", "category", "kind"), seed=5)
    batch = composer.pictures([A_DOG])
    image_BCHW = torch.randn(1, 3, 16, 16)
    packed, _ = model(image_BCHW, batch.tokens)
    tokens = batch.tokens
    vision = tokens.segment_BS[0] >= 0
    start = int(vision.nonzero().max()) + 1
    opening = torch.where(vision, composer.image, tokens.token_BS[0])[:start]
    turns = (tokens.position_BS[0][start:] == start).nonzero().flatten().tolist()
    assert len(turns) == 3
    for first, last in zip(turns, [*turns[1:], len(tokens.token_BS[0]) - start], strict=True):
        alone = torch.cat([opening, tokens.token_BS[0, start + first : start + last]])[None]
        is_turn = tokens.position_BS[0, start + first : start + last] >= start
        logits, _ = model(image_BCHW, prompt_tokens(alone, composer.image))
        torch.testing.assert_close(
            logits[0, start:][is_turn], packed[0, start + first : start + last][is_turn], atol=1e-5, rtol=1e-4
        )


def test_scores_are_exact_matches() -> None:
    cases = [Case("s", i, "name", "What is this?", answer, (i,)) for i, answer in enumerate(("dog", "cat"))]
    (result,) = score(cases, [" dog", "a cat"])
    assert (result.questions, result.right) == (2, 0.5)
    assert result.error == pytest.approx(0.5)
