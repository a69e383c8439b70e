"""Tokenizers trained with the pre-tokens of a family, which llama.cpp knows by name."""

from __future__ import annotations

import pytest

from dacheng.errors import DachengError, UsageError
from dacheng.text import gguf_metadata_of, tokenizer_from_gguf, train_tokenizer

TEXTS = ["def main(x):\n    return 12345 + x\n", "大成是一个系统，2024年。", "Hello 世界! It's 3.14159 😀"] * 5


@pytest.mark.parametrize("split", ["deepseek-v3", "gpt-2", "smollm", "gpt-4o", "deepseek-coder"])
def test_a_named_split_survives_the_way_through_gguf(split):
    tokenizer = train_tokenizer(TEXTS, vocab_size=400, split=split)
    metadata = gguf_metadata_of(tokenizer)
    assert metadata["tokenizer.ggml.pre"] == split
    back = tokenizer_from_gguf(metadata)
    for text in (*TEXTS[:3], "  mixed 大成 text\n\n\twith 1234567 ١٢٣ and naïve cafés"):
        assert back.encode(text) == tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_han_and_digits_are_cut_by_deepseeks_split():
    tokenizer = train_tokenizer(TEXTS, vocab_size=400, split="deepseek-v3")
    pieces = [tokenizer.token_bytes(i) for i in tokenizer.encode("x12345大成y")]
    assert b"".join(pieces).decode() == "x12345大成y"
    assert not any(max(piece) > 127 and min(piece) < 128 for piece in pieces)
    assert all(len(piece) <= 3 for piece in pieces if piece.isdigit())


def test_our_own_split_has_no_name_there():
    with pytest.raises(DachengError):
        gguf_metadata_of(train_tokenizer(TEXTS, vocab_size=300))


@pytest.mark.parametrize(
    "options",
    [
        {"split": "nonsense"},
        {"split": "llama-bpe"},
        {"split": "gpt-2", "kind": "unigram"},
        {"split": "gpt-2", "digits": 1},
        {"split": "gpt-2", "isolate_han": False},
    ],
)
def test_what_does_not_go_together_is_refused(options):
    with pytest.raises((DachengError, UsageError)):
        train_tokenizer(TEXTS, vocab_size=400, **options)
