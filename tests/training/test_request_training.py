"""Training of routers that decide once for each request: their inputs, and the same decisions in a server."""

import re
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from prismoe.kernels.routing import PADDING
from prismoe.model_plugins.moe_layer.request_logits import RequestLogits
from prismoe.model_plugins.routing.request_policy import NO_TASK, RequestPolicy
from prismoe.model_plugins.vllm_seams.engine.step_watch import StepRequests
from prismoe.training.comparison.contenders import CONTENDERS, Trained
from prismoe.training.comparison.start import start
from prismoe.training.data.batches import IGNORED, Batch, Composer
from prismoe.training.data.concepts import CONCEPTS
from prismoe.training.data.questions import TASKS, TEMPLATES, Topic
from prismoe.training.data.scenes import Known, single
from prismoe.training.data.tokenizer import build_tokenizer
from prismoe.training.model.moe_llava import DeepSpeedMoE, MoELLaVA, prompt_tokens
from prismoe.training.router_training import router_training
from prismoe.training.stages import batch_losses, prepare_routers
from tests.training.model.test_moe_llava import SMALL, SMALL_TOWER, images

ROUTERS = ["task", "cluster", "instruction"]
SHOWN = [single(Known(concept, 0)) for concept in CONCEPTS[:40:4]]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def composer(tokenizer: PreTrainedTokenizerFast) -> Composer:
    return Composer(tokenizer, SMALL_TOWER.tokens, tuple(TEMPLATES), seed=7)


@pytest.fixture
def requests(tokenizer: PreTrainedTokenizerFast) -> Batch:
    return composer(tokenizer).requests(SHOWN)


@pytest.fixture(params=ROUTERS)
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> MoELLaVA:
    contender = CONTENDERS[request.param]
    assert isinstance(contender, Trained)
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"vocab_size": len(tokenizer)})
    return start(MoELLaVA(config, SMALL_TOWER), (0, 2), contender)


def test_requests_have_the_questions_of_sequences_in_the_same_order(
    tokenizer: PreTrainedTokenizerFast, requests: Batch
) -> None:
    """The turns of each picture, one after the other, have the contents of one sequence."""
    packed, own = composer(tokenizer).pictures(SHOWN), requests.tokens
    assert torch.equal(
        requests.target_BS[requests.target_BS != IGNORED], packed.target_BS[packed.target_BS != IGNORED]
    )
    for picture in range(len(SHOWN)):
        is_own_B = (own.segment_BS == picture).any(dim=1)
        assert is_own_B.sum() == 3
        shown_BS = own.segment_BS[is_own_B] == picture
        assert (shown_BS.sum(dim=1) == SMALL_TOWER.tokens).all()


@torch.inference_mode()
def test_a_request_alone_gives_the_answers_of_its_turn(
    tokenizer: PreTrainedTokenizerFast, requests: Batch
) -> None:
    """A model without such a router gives each answer the same logits as among other turns."""
    torch.manual_seed(0)
    model = MoELLaVA(SMALL.model_copy(update={"vocab_size": len(tokenizer)}), SMALL_TOWER).eval()
    packed = composer(tokenizer).pictures(SHOWN)
    image_BCHW = images(len(SHOWN))
    expected_WY, _ = model(image_BCHW, packed.tokens, packed.target_BS != IGNORED)
    logits_WY, _ = model(image_BCHW, requests.tokens, requests.target_BS != IGNORED)
    torch.testing.assert_close(logits_WY, expected_WY, atol=1e-5, rtol=1e-4)


def topic_of(question: str) -> Topic | None:
    """The topic of a question about a picture in any wording, or nothing if no picture comes first."""
    for topic, templates in TEMPLATES.items():
        for template in templates:
            if re.fullmatch("\n" + re.sub("{.*}", ".+", template[:-1]) + ".?", question, re.IGNORECASE):
                return topic
    return None


def test_a_request_has_its_label_and_its_prompt(tokenizer: PreTrainedTokenizerFast, requests: Batch) -> None:
    tokens = requests.tokens
    assert tokens.prompts is not None
    for token_S, task, is_instruction_S in zip(tokens.token_BS, *tokens.prompts, strict=True):
        prompt = tokenizer.decode(token_S[is_instruction_S])
        question = prompt.partition("USER: ")[2]
        assert prompt.count("USER: ") == 1 and question.endswith(" ASSISTANT:")
        assert task == TASKS[topic_of(question.removesuffix(" ASSISTANT:"))], prompt
    of_places = {TASKS[topic] for topic in ("thing at a place", "category at a place", "place of a thing")}
    assert set(tokens.prompts.task_B.tolist()) == {NO_TASK, *range(len(TEMPLATES))} - of_places


def test_the_answers_loss_reaches_the_router(model: MoELLaVA, requests: Batch) -> None:
    assert model.routes_requests
    routers = [router_training(moe) for moe in model.moe_layers]
    losses, _ = batch_losses(model, routers, images(len(SHOWN)), requests)
    losses["answer"].backward()
    for moe in model.moe_layers:
        for name, parameter in moe.router.items():
            assert (parameter.grad is None) == (name == "centroids")
            assert parameter.grad is None or parameter.grad.abs().sum() > 0, name


def test_several_requests_in_a_sequence_are_refused(
    model: MoELLaVA, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(
        ValueError, match="decides once for each request: put each request into its own sequence"
    ):
        model(images(len(SHOWN)), composer(tokenizer).pictures(SHOWN).tokens)


@pytest.mark.parametrize("model", ["cluster"], indirect=True)
def test_centroids_are_the_centres_of_instructions(model: MoELLaVA, requests: Batch) -> None:
    prepare_routers(model, [router_training(moe) for moe in model.moe_layers], images(len(SHOWN)), requests)
    first, second = (moe.router["centroids"] for moe in model.moe_layers)
    assert torch.equal(first, second)
    described = requests.tokens.requests(model.model.embed_tokens(requests.tokens.token_BS))
    assert described is not None
    instruction_RD = described.instruction_RD.detach()
    nearest_R = torch.cdist(instruction_RD, first.detach()).argmin(dim=1)
    assert len(nearest_R.unique()) == len(first)
    for cluster, centre_D in enumerate(first.detach()):
        torch.testing.assert_close(centre_D, instruction_RD[nearest_R == cluster].mean(dim=0))


def served_logits(
    moe: DeepSpeedMoE, model: MoELLaVA, prompt: list[int], image: int, task: int
) -> torch.Tensor:
    """The plugin's logits for all tokens of a request in this layer, `[E]`."""
    assert isinstance(moe.policy, RequestPolicy)
    request_T = torch.zeros(1, dtype=torch.int64)
    logits = RequestLogits({0: moe.num_experts}, request_T, max_requests=1)
    gate = logits.add_layer(0, moe.policy, dict(moe.router))
    at = SimpleNamespace(offset=prompt.index(image), length=prompt.count(image)) if image in prompt else None
    request = SimpleNamespace(
        req_id="a",
        prompt_token_ids=prompt,
        mm_features=[SimpleNamespace(mm_position=at)] if at else [],
        sampling_params=SimpleNamespace(extra_args={"task": task}),
    )
    logits.begin_step(StepRequests(["a"], [1], [1], [request], {"a"}), model.model.embed_tokens)
    return gate(torch.empty(1, 0))[0]


@torch.inference_mode()
def test_a_server_decides_the_same(
    model: MoELLaVA, tokenizer: PreTrainedTokenizerFast, requests: Batch
) -> None:
    """The server gets each request's prompt without the answer."""
    own = composer(tokenizer)
    prepare_routers(model, [router_training(moe) for moe in model.moe_layers], images(len(SHOWN)), requests)
    _, trained = model(images(len(SHOWN)), requests.tokens)
    tokens, prompts = requests.tokens, requests.tokens.prompts
    assert prompts is not None
    for row in range(len(tokens.token_BS)):
        is_vision_S = tokens.segment_BS[row] >= 0
        prompt = tokens.token_BS[row][is_vision_S | prompts.is_instruction_BS[row]].tolist()
        answered = tokens.token_BS[row][tokens.segment_BS[row] != PADDING][None]
        asked = prompt_tokens(answered, own.image, prompts.task_B[[row]], answered.shape[1] - len(prompt))
        picture = tokens.segment_BS[row][is_vision_S][:1]
        _, again = model(images(len(SHOWN))[picture], asked)
        for moe, routing, alone in zip(model.moe_layers, trained, again, strict=True):
            served_E = served_logits(moe, model, prompt, own.image, int(prompts.task_B[row]))
            of_row_SE = routing.step.logits_TE.view(*tokens.token_BS.shape, -1)[row]
            for logits_SE in (of_row_SE, alone.step.logits_TE):
                torch.testing.assert_close(logits_SE, served_E.expand_as(logits_SE), atol=1e-6, rtol=1e-4)
