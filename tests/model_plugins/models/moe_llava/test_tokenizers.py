"""Rank files are read like tiktoken does, and found without code from the checkpoint."""

import base64
import json
import random
import shutil
import unicodedata
from pathlib import Path

import pytest
import tiktoken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prismoe.model_plugins.models.moe_llava.families.qwen import QWenTokenizer
from prismoe.model_plugins.models.moe_llava.families.stablelm import Arcade100kTokenizer
from prismoe.model_plugins.models.moe_llava.names import CHAT_TEMPLATE
from prismoe.model_plugins.models.moe_llava.tokenizers import (
    SPLIT_PATTERN,
    RanksTokenizer,
)
from prismoe.model_plugins.plugin import register
from prismoe.model_plugins.tools.convert.self_contained import write_tokenizer
from tests.model_plugins.engine import PHI

TEXTS = [
    "USER: <image>\nWhat is unusual about this image? ASSISTANT:",
    "Hello<|endoftext|>world <|im_start|>",
    "12345 67",
    "naïve cafe\u0301 日本語 🦊",
    "   lots   of\n\n spaces\t\r\n",
    "it's I'LL they've",
    "",
]


def byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable bytes are themselves, the others start at 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def ranks() -> list[bytes]:
    """The 400 byte-level tokens of the Phi fixture, by rank."""
    spelling = byte_of_character()
    vocabulary = json.loads((PHI / "vocab.json").read_text())
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    return [bytes(spelling[character] for character in token) for token in ordered if token[:2] != "<|"]


@pytest.fixture(params=[QWenTokenizer, Arcade100kTokenizer])
def kind(request: pytest.FixtureRequest) -> type[RanksTokenizer]:
    return request.param


@pytest.fixture
def checkpoint(tmp_path: Path, kind: type[RanksTokenizer]) -> Path:
    """A folder in the authors' form, whose tokenizer needs code that is missing."""
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(ranks())]
    (tmp_path / kind.vocab_files_names["vocab_file"]).write_text("\n".join(lines))
    family = "qwen" if kind is QWenTokenizer else "stablelm"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": f"moe_llava_{family}"}))
    remote = {"AutoTokenizer": [f"tokenization.{kind.__name__}", None]}
    settings = {"tokenizer_class": kind.__name__, "auto_map": remote, "model_max_length": 2048}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_tokens_are_tiktokens(checkpoint: Path, kind: type[RanksTokenizer]) -> None:
    register()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    assert type(tokenizer) is kind
    mergeable = {token: rank for rank, token in enumerate(ranks())}
    special = {token: len(mergeable) + i for i, token in enumerate(kind.special_tokens_in_order)}
    expected = tiktoken.Encoding(
        "ranks", pat_str=SPLIT_PATTERN, mergeable_ranks=mergeable, special_tokens=special
    )
    draw = random.Random(0)
    noise = ["".join(draw.choices(" \n'09azéß中😀", k=60)) for _ in range(100)]
    for text in TEXTS + noise:
        composed = unicodedata.normalize("NFC", text)
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        assert token_ids == expected.encode(composed, allowed_special="all")
        assert tokenizer.decode(token_ids) == composed


def test_the_special_tokens_have_the_authors_ids() -> None:
    assert 151643 + QWenTokenizer.special_tokens_in_order.index("<|extra_204|>") == 151850
    arcade = Arcade100kTokenizer.special_tokens_in_order
    for token, token_id in (("<|fim_pad|>", 100261), ("<reponame>", 100275), ("<|im_end|>", 100278)):
        assert 100257 + arcade.index(token) == token_id
    assert 100257 + len(arcade) - 1 == 100288


def test_a_converted_tokenizer_is_the_same_without_the_plugin(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    register()
    original = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    folder = tmp_path_factory.mktemp("converted")
    write_tokenizer(checkpoint, folder, CHAT_TEMPLATE)
    converted = PreTrainedTokenizerFast.from_pretrained(folder)
    shutil.copy(checkpoint / "config.json", folder)
    assert type(AutoTokenizer.from_pretrained(folder)) is type(converted)
    assert (len(converted), converted.eos_token_id) == (len(original), original.eos_token_id)
    assert converted.model_max_length == original.model_max_length == 2048
    for text in [*TEXTS, *original.get_added_vocab()]:
        token_ids = original.encode(text)
        assert converted.encode(text) == token_ids
        for skip in (True, False):
            assert converted.decode(token_ids, skip) == original.decode(token_ids, skip)
