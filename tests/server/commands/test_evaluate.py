"""`prismoe evaluate` with the bundled model: its output matches the answers and the policies' k."""

import json
import shlex
from pathlib import Path

import pytest

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.server.commands.cli import main
from tests.doc_commands import documented
from tests.model_plugins.engine import PHI
from tests.model_plugins.in_tree.checkpoints import make_checkpoint
from tests.model_plugins.tools.check.test_check import assert_one_sentence

PICTURES = bundled_checkpoint() / "pictures"
IMAGE_TOKENS, MOE_LAYERS = 64, 2
LONG = "Is it a star? " * 30
"""The question fills a block of the KV cache. If it came twice, it would come from a prefix cache."""
ASKED = [
    ("jeans.png", LONG, ["perhaps"]),
    ("maple-leaf.png", "What is this?", ["maple leaf"]),
    ("wine.png", "What is this?", ["Wine."]),
    ("jeans.png", "What is this?", ["trousers", "JEANS"]),
    ("dress.png", "What is this?", ["dress"]),
    ("jeans.png", LONG, ["perhaps"]),
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    for name in {name for name, *_ in ASKED}:
        (tmp_path / name).symlink_to(PICTURES / name)
    lines = [json.dumps({"image": name, "question": text, "answer": right}) for name, text, right in ASKED]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(lines))
    return file


@pytest.mark.engine
def test_each_k_is_counted_and_each_answer_is_scored(
    questions: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    routings = [{"policy": "topk", "top_k": 1}, {"policy": "topk", "top_k": 3}]
    options = [option for routing in routings for option in ("--routing", json.dumps(routing))]
    file = tmp_path / "written.json"
    command = ["evaluate", str(bundled_checkpoint()), *options, "--questions", str(questions)]
    assert main([*command, "--max-tokens", "4", "--json", str(file), "--max-num-seqs", "3"]) == 0
    written = json.loads(file.read_text())
    one, three = written["routings"]
    assert [row["routing"] for row in (one, three)] == routings
    images = len(ASKED) * IMAGE_TOKENS * MOE_LAYERS
    for row, k in ((one, 1), (three, 3)):
        assert row["experts_per_token"] == {"text": k, "image": k}
        assert row["expert_uses"]["image"] == k * images
        assert len(row["answers"]) == len(ASKED)
        by_hand = [
            answer.lower().rstrip(".") in [text.lower().rstrip(".") for text in accepted]
            for answer, (*_, accepted) in zip(row["answers"], ASKED, strict=True)
        ]
        assert row["right"] == sum(by_hand)
        assert row["accuracy"] == sum(by_hand) / len(ASKED)
    assert three["right"] >= 2 and "maple leaf" in three["answers"]
    uses = [sum(row["expert_uses"].values()) for row in (one, three)]
    assert three["share_of_first_uses"] == uses[1] / uses[0] > 2.9
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["topk, top_k 1", "topk, top_k 3"]
    assert f"{three['accuracy']:.1%}" in lines[3] and "3.00" in lines[3]


@pytest.mark.engine
def test_a_model_of_vllms_own_is_counted_as_it_routes(questions: Path, tmp_path: Path) -> None:
    file = tmp_path / "written.json"
    model = make_checkpoint("qwen3-vl-moe", tmp_path)
    [command] = documented("prismoe evaluate MODEL --routing")
    names = {"MODEL": str(model), "FILE.jsonl": str(questions), "FILE.json": str(file)}
    _, *arguments = [names.get(word, word) for word in shlex.split(command)]
    assert main([*arguments, "--max-tokens", "2", "--dtype", "float32"]) == 0
    native, one = json.loads(file.read_text())["routings"]
    assert (native["policies"], native["not_seen"]) == (["native"], [])
    assert native["experts_per_token"] == {"text": 2, "image": 2}
    assert one["experts_per_token"] == {"text": 1, "image": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--questions", "/none.jsonl"), "There is no file /none.jsonl: name a file of questions."),
        (("--routing", "{"), "--routing: '{' is not JSON"),
        (
            ("--routing", '{"policy": "native"}', "--routing", '{"policy": "best"}'),
            "policy is 'best': give one",
        ),
        (("--routing", '{"policy": "topk", "top_k": 9}'), "top_k is 9"),
        (("--max-tokens", "0"), "--max-tokens: Input should be greater than or equal to 1"),
        (("--json", "/none/written.json"), "There is no folder /none for written.json: create it first."),
        (("--trust-remote-code",), "use --run-checkpoint-code."),
    ],
)
def test_impossible_settings_are_reported_before_anything_starts(
    options: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(PHI), *options]) == 1
    assert_one_sentence(capfd, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--routing", "{}", str(PHI)], "put MODEL first"),
        ([str(PHI), "--question", "FILE"], "unrecognized arguments: --question FILE"),
    ],
)
def test_an_unknown_option_is_reported_as_by_argparse(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *arguments])
    assert ended.value.code == 2
    assert message in capfd.readouterr().err
