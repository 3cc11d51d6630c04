"""A scenario's arguments are valid for vLLM's benchmark."""

import argparse
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from prismoe.loadtests.local_server import CHECKPOINT
from prismoe.loadtests.scenarios import RATIOS, Scenario, at_ratio, mixed_traffic, standard
from tests.loadtests.runs import TARGET


def parsed(scenario: Scenario) -> argparse.Namespace:
    """The arguments, parsed by vLLM's own parser, which ends the test if they are wrong."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    return parser.parse_args(scenario.arguments(TARGET, ["ttft:2000", "tpot:100"]))


def test_random_pictures() -> None:
    args = parsed(Scenario(name="s", requests=7, images=3, text_tokens=9, answer_tokens=5, at_once=2, seed=4))
    assert (args.dataset_name, args.random_mm_base_items_per_request) == ("random-mm", 3)
    assert args.random_mm_bucket_config == {(224, 224, 1): 1.0}
    assert (args.random_input_len, args.random_output_len, args.random_range_ratio) == (9, 5, "0.0")
    assert (args.num_prompts, args.max_concurrency, args.seed) == (7, 2, 4)
    assert args.request_rate == float("inf") and args.ignore_eos and args.temperature == 0
    assert args.goodput == ["ttft:2000", "tpot:100"]
    assert (args.base_url, args.model, args.tokenizer) == (TARGET.url, TARGET.model, TARGET.tokenizer)


def test_a_rate_without_a_bound() -> None:
    args = parsed(Scenario(name="s", requests=7, at_once=None, rate=2.5, burstiness=0.1))
    assert (args.request_rate, args.burstiness, args.max_concurrency) == (2.5, 0.1, None)


def test_an_image_set(tmp_path: Path) -> None:
    args = parsed(Scenario(name="s", requests=7, image_set=tmp_path / "set.jsonl", answer_tokens=5))
    assert (args.dataset_name, args.dataset_path) == ("custom_image", str(tmp_path / "set.jsonl"))
    assert args.custom_output_len == 5 and args.enable_multimodal_chat


def test_mixed_traffic_varies() -> None:
    args = parsed(mixed_traffic("ramp-4", 24, at_once=4))
    assert (args.random_mm_num_mm_items_range_ratio, args.random_range_ratio) == (1.0, "0.5")


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_ratio_of_vision_to_text(ratio: int) -> None:
    scenario = at_ratio(ratio, 24, TARGET)
    assert scenario is not None
    text = TARGET.template_tokens + scenario.images * TARGET.tokens_beside_image
    text += scenario.text_tokens + scenario.answer_tokens - 1
    assert scenario.images * TARGET.image_tokens / text == pytest.approx(ratio, rel=0.03)


def test_a_ratio_out_of_reach_is_left_out(tmp_path: Path) -> None:
    """Each picture adds more text than the ratio allows."""
    wordy = TARGET.model_copy(update={"tokens_beside_image": 4})
    names = [scenario.name for scenario in standard(wordy, 1, tmp_path)]
    assert "mixed-8:1" in names and "mixed-32:1" not in names


def test_the_standard_scenarios(tmp_path: Path) -> None:
    scenarios = standard(TARGET, 0.25, tmp_path / "set.jsonl")
    assert [scenario.name for scenario in scenarios] == [
        "chat-text",
        "one-image",
        "many-images",
        *(f"mixed-{ratio}:1" for ratio in RATIOS),
        "repeated-image",
        "long-decode",
        "burst",
    ]
    assert scenarios[0].requests == 12
    for scenario in scenarios:
        parsed(scenario)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"request": 3}, "Extra inputs are not permitted"),
        ({"images": 17}, "less than or equal to 16"),
        ({"at_once": None}, "A scenario needs at_once or rate"),
        ({"image_set": "a.jsonl", "images": 1}, "can't have images or varied"),
        ({"rate": 0}, "greater than 0"),
    ],
)
def test_wrong_scenarios_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Scenario.model_validate_json(json.dumps({"name": "s", "requests": 3} | wrong))


def test_the_local_servers_tokenizer_exists() -> None:
    assert (CHECKPOINT / "tokenizer.json").is_file()
