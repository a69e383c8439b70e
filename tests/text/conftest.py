"""A small tokenizer of each kind, trained once."""

from __future__ import annotations

import pytest
from text_corpora import MIXED

from dacheng.text import Tokenizer, train_tokenizer

SIZES = {"bpe": 700, "unigram": 500, "wordpiece": 900}


@pytest.fixture(scope="session")
def trained() -> dict[str, Tokenizer]:
    return {kind: train_tokenizer(MIXED, kind, size) for kind, size in SIZES.items()}


@pytest.fixture(params=sorted(SIZES))
def kind(request) -> str:
    return request.param


@pytest.fixture
def tokenizer(trained, kind) -> Tokenizer:
    return trained[kind]
