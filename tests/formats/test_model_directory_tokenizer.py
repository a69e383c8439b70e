"""The tokenizer's part of a model directory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dacheng.errors import DachengError
from dacheng.formats.model_directory import load_model, load_tokenizer, save_model
from dacheng.formats.verify import verify
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.text import Tokenizer, train_tokenizer

TEXTS = ["to be, or not to be, that is the question. " * 8, "大直若屈，大巧若拙，大辩若讷。" * 8]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, kind="bpe", vocab_size=300)


@pytest.fixture(scope="module")
def model(tokenizer) -> Decoder:
    return Decoder(DecoderTraits(vocab_size=tokenizer.vocab_size + 4, width=16, layers=1, heads=2)).init_weights()


def test_the_tokenizer_comes_back_with_the_model(tmp_path, model, tokenizer):
    directory = save_model(tmp_path / "m", model, tokenizer, generation={"temperature": 0.5})
    loaded = load_model(directory)
    assert loaded.notes == []
    for found in (loaded.tokenizer, load_tokenizer(directory)):
        assert found is not None
        assert found.fingerprint == tokenizer.fingerprint
        for text in TEXTS:
            assert found.encode(text) == tokenizer.encode(text)
    assert loaded.provenance["tokenizer"] == tokenizer.fingerprint
    config = json.loads((directory / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (tokenizer.eos_id, tokenizer.pad_id)
    assert config["bos_token_id"] == tokenizer.bos_id
    ids = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    assert loaded.generation.items() >= (ids | {"temperature": 0.5}).items()


def test_a_tokenizer_alone_is_loaded_from_its_directory(tmp_path, tokenizer):
    (tmp_path / "t").mkdir()
    tokenizer.save(tmp_path / "t")
    assert load_tokenizer(tmp_path / "t").fingerprint == tokenizer.fingerprint


def test_more_tokens_than_the_model_has_are_refused_and_noted(tmp_path, model, tokenizer):
    small = Decoder(replace(model.traits, vocab_size=tokenizer.vocab_size - 1)).init_weights()
    with pytest.raises(DachengError, match="the tokenizer has") as caught:
        save_model(tmp_path / "m", small, tokenizer)
    assert caught.value.field == "vocab_size"
    assert not list(tmp_path.iterdir())
    save_model(tmp_path / "m", small)
    tokenizer.save(tmp_path / "m")  # as a careless converter leaves it
    assert any("the tokenizer has" in note for note in load_model(tmp_path / "m").notes)


def test_saving_without_a_tokenizer_leaves_no_stale_one(tmp_path, model, tokenizer):
    save_model(tmp_path / "m", model, tokenizer)
    save_model(tmp_path / "m", model)
    assert load_model(tmp_path / "m").tokenizer is None
    assert not list((tmp_path / "m").glob("tokenizer*"))


def test_verify_on_texts_needs_one_tokenizer(tmp_path, model, tokenizer):
    a = save_model(tmp_path / "a", model, tokenizer)
    report = verify(a, a, texts=TEXTS)
    assert report["max_abs"] == 0.0
    assert report["input"] == "texts"
    assert report["positions"] == sum(len(tokenizer.encode(text)) for text in TEXTS)
    other = train_tokenizer(TEXTS, kind="bpe", vocab_size=280)
    b = save_model(tmp_path / "b", model, other)
    with pytest.raises(DachengError, match="different tokenizers"):
        verify(a, b, texts=TEXTS)
