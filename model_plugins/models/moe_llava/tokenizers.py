"""The tokenizers of Qwen and StableLM, read from their ranks files without code from the checkpoint.

Both are byte-level BPE with tiktoken's ranks; their special tokens follow the ranks in a fixed order.
"""

from typing import Any, ClassVar

from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT = "<|endoftext|>"


def tokenizer_from_ranks(ranks_file: str, special_tokens: tuple[str, ...]) -> Tokenizer:
    """A tokenizer with the ranks of a `.tiktoken` file, and the special tokens on the ids behind them."""
    tokenizer: Tokenizer = TikTokenConverter(
        ranks_file, pattern=SPLIT_PATTERN, extra_special_tokens=special_tokens
    ).converted()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


class RanksTokenizer(PreTrainedTokenizerFast):
    """A tokenizer of a ranks file. The subclasses bear the names that tokenizer_config.json gives them."""

    special_tokens_in_order: ClassVar[tuple[str, ...]]

    def __init__(self, vocab_file: str | None = None, **settings: Any) -> None:
        if vocab_file is not None and "tokenizer_object" not in settings:
            settings["tokenizer_object"] = tokenizer_from_ranks(vocab_file, self.special_tokens_in_order)
        ends = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
        super().__init__(**ends | {name: value for name, value in settings.items() if value is not None})


class QWenTokenizer(RanksTokenizer):
    """Qwen of the first generation (`qwen.tiktoken`, 151,643 ranks)."""

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "qwen.tiktoken"}
    special_tokens_in_order = (
        END_OF_TEXT,
        "<|im_start|>",
        "<|im_end|>",
        *(f"<|extra_{index}|>" for index in range(205)),
    )


class Arcade100kTokenizer(RanksTokenizer):
    """StableLM 2 (`arcade100k.tiktoken`, 100,257 ranks)."""

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "arcade100k.tiktoken"}
    special_tokens_in_order = (
        END_OF_TEXT,
        *(f"<|fim_{part}|>" for part in ("prefix", "middle", "suffix", "pad")),
        "<gh_stars>",
        "<filename>",
        *(f"<issue_{part}>" for part in ("start", "comment", "closed")),
        *(f"<jupyter_{part}>" for part in ("start", "text", "code", "output")),
        "<empty_output>",
        *(f"<commit_{part}>" for part in ("before", "msg", "after")),
        "<reponame>",
        "<|endofprompt|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|pause|>",
        *(f"<|reg{index}|>" for index in range(8)),
        "<|extra0|>",
    )


RANKS_TOKENIZERS: dict[str, type[RanksTokenizer]] = {"QWen": QWenTokenizer, "Stablelm": Arcade100kTokenizer}
"""By the decoder's name; Phi's tokenizer is transformers' own."""
