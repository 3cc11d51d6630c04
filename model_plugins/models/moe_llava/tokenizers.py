"""Tokenizers that are read from a ranks file, without code from the checkpoint.

They are byte-level BPE with tiktoken's ranks; their special tokens follow the ranks in a fixed order.
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
    """A tokenizer with the ranks of a `.tiktoken` file; the special tokens get the ids after them."""
    tokenizer: Tokenizer = TikTokenConverter(
        ranks_file, pattern=SPLIT_PATTERN, extra_special_tokens=special_tokens
    ).converted()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


class RanksTokenizer(PreTrainedTokenizerFast):
    """A tokenizer of a ranks file. The subclasses have the names that tokenizer_config.json uses."""

    special_tokens_in_order: ClassVar[tuple[str, ...]]

    def __init__(self, vocab_file: str | None = None, **settings: Any) -> None:
        if vocab_file is not None and "tokenizer_object" not in settings:
            settings["tokenizer_object"] = tokenizer_from_ranks(vocab_file, self.special_tokens_in_order)
        ends = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
        super().__init__(**ends | {name: value for name, value in settings.items() if value is not None})
