"""Tokenizers in GGUF's metadata: in, out, and in again."""

from __future__ import annotations

import gzip
import json
import logging

import numpy as np
import pytest
from text_corpora import HARD, MIXED

from dacheng.errors import DachengError, DamagedFile
from dacheng.text import Tokenizer, gguf_metadata_of, tokenizer_from_gguf
from dacheng.text.vocabularies import tokenizer_from_sentencepiece, tokenizer_from_tiktoken

P = "tokenizer.ggml."


@pytest.fixture(scope="module")
def gpt2(shared_data):
    """GPT-2's vocabulary as convert_hf_to_gguf.py writes it."""
    folder = shared_data / "tokenizer_gpt2"
    vocab = json.loads(gzip.decompress((folder / "gpt2_vocab.json.gz").read_bytes()))
    merges = gzip.decompress((folder / "gpt2_merges.txt.gz").read_bytes()).decode().split("\n")
    tokens = sorted(vocab, key=vocab.__getitem__)
    return {
        P + "model": "gpt2", P + "pre": "gpt-2", P + "tokens": tokens, P + "token_type": [1] * 50256 + [3],
        P + "merges": [line for line in merges if line and not line.startswith("#")],
        P + "bos_token_id": 50256, P + "eos_token_id": 50256, "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip


@pytest.fixture(scope="module")
def small(goldens):
    """A model of each kind, as metadata."""
    names = ("llama", "gemma")
    return {
        name: gguf_metadata_of(tokenizer_from_sentencepiece(goldens / "vocabularies" / f"{name}.model"))
        for name in names
    }


@pytest.mark.oracle
def test_gpt2s_ids(gpt2, goldens):
    tokenizer = tokenizer_from_gguf(gpt2)
    for row in json.loads((goldens / "gpt2_ids.json").read_text(encoding="utf-8")):
        assert tokenizer.encode(row["text"]) == row["ids"]
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.encode("a", add_special_tokens=True) == tokenizer.encode("a")
    # llama.cpp's rule for a name decides what is around a text where the file doesn't
    named = tokenizer_from_gguf(gpt2 | {P + "pre": "llama-bpe"})
    assert named.encode("a", add_special_tokens=True) == [50256, *named.encode("a")]
    both = tokenizer_from_gguf(gpt2 | {P + "add_eos_token": True, P + "add_bos_token": np.bool_(True)})
    assert both.encode("a", add_special_tokens=True) == [50256, *both.encode("a"), 50256]


def test_byte_level_comes_back_key_by_key(gpt2, tmp_path):
    tokenizer = tokenizer_from_gguf(gpt2)
    out = gguf_metadata_of(tokenizer)
    assert {key: out[key] for key in gpt2} == gpt2
    assert out.keys() - gpt2.keys() == {P + key for key in ("add_bos_token", "add_eos_token", "add_space_prefix")}
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer_from_gguf(out).fingerprint == tokenizer.fingerprint


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_sentencepiece_through_gguf_keeps_its_ids(small, goldens, name):
    tokenizer = tokenizer_from_gguf(small[name])
    expected = json.loads((goldens / "vocabularies" / "expected.json").read_text(encoding="utf-8"))
    assert tokenizer.encode_batch(expected["texts"]) == expected["models"][name]["ids"]
    assert small[name][P + "add_space_prefix"] == (name == "llama")
    rows = {key: small[name][P + key] for key in ("tokens", "scores", "token_type")}
    assert len({len(row) for row in rows.values()}) == 1
    assert "  " in rows["tokens"] or name == "llama"  # user-defined pieces have plain spaces there
    assert gguf_metadata_of(tokenizer) == small[name]


def test_numpy_arrays_are_taken_as_lists(small):
    as_numpy = small["llama"] | {
        P + "scores": np.array(small["llama"][P + "scores"], np.float32),
        P + "token_type": np.array(small["llama"][P + "token_type"], np.int32),
        P + "eos_token_id": np.uint32(2),
    }
    assert tokenizer_from_gguf(as_numpy).fingerprint == tokenizer_from_gguf(small["llama"]).fingerprint


def test_a_file_without_pre_is_read_as_llama_cpp_does_and_says_so(gpt2, caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = tokenizer_from_gguf({key: value for key, value in gpt2.items() if key != P + "pre"})
    assert "does not say how its texts are cut" in caplog.text
    assert tokenizer.encode("a1234") == tokenizer.encode("a") + tokenizer.encode("123") + tokenizer.encode("4")


def test_bytes_that_a_vocabulary_lacks_are_named(gpt2, caplog):
    tokens = [f"[gone {i}]" if token == "Ā" else token for i, token in enumerate(gpt2[P + "tokens"])]  # byte 0
    with caplog.at_level(logging.WARNING):
        tokenizer_from_gguf(gpt2 | {P + "tokens": tokens})
    assert "no token for the bytes 00" in caplog.text


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"model": "bert"}, "model"),
        ({"model": 7}, "model"),
        ({"model": ...}, "model"),
        ({"pre": "superbpe-9"}, "pre"),
        ({"tokens": ...}, "tokens"),
        ({"tokens": []}, "tokens"),
        ({"tokens": [b"a", b"b"]}, "tokens"),
        ({"tokens": "abc"}, "tokens"),
        ({"token_type": [1, 1]}, "token_type"),
        ({"token_type": [1.5] * 50257}, "token_type"),
        ({"merges": ["a b c"]}, "merges"),
        ({"merges": ["qqqq zzzz"]}, "merges"),
        ({"merges": [" x"]}, "merges"),
        ({"merges": None}, "merges"),
        ({"eos_token_id": 50257}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"eos_token_id": True}, "eos_token_id"),
        ({"add_bos_token": 1}, "add_bos_token"),
    ],
)
def test_contradictions_are_named(gpt2, changes, field):
    changed = {key: value for key, value in (gpt2 | {P + k: v for k, v in changes.items()}).items() if value is not ...}
    with pytest.raises(DachengError) as caught:
        tokenizer_from_gguf(changed)
    assert field in caught.value.field and caught.value.remedy


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"scores": ...}, "scores"),
        ({"scores": [0.0]}, "scores"),
        ({"scores": [float("nan")]}, "scores"),
        ({"token_type": [9]}, "type"),
        ({"unknown_token_id": 10**9}, "unknown_token_id"),
        ({"tokens": ["a"]}, "pieces"),
    ],
)
def test_contradictions_of_the_sentencepiece_kind_are_named(small, changes, field):
    size = len(small["llama"][P + "tokens"])
    changes = {
        P + k: v * size if k != "scores" or v is ... or v[0] else v
        for k, v in changes.items()
        if v is not ... and isinstance(v, list)
    } | {P + k: v for k, v in changes.items() if not isinstance(v, list)}
    changed = {key: value for key, value in (small["llama"] | changes).items() if value is not ...}
    with pytest.raises(DamagedFile) as caught:
        tokenizer_from_gguf(changed)
    assert field in caught.value.field and caught.value.remedy


def test_what_llama_cpp_cannot_say_is_refused(trained, goldens, tmp_path):
    with pytest.raises(DachengError, match="pre_tokenizer"):
        gguf_metadata_of(trained["bpe"])  # Han runs and groups of digits: no such rule there
    assert gguf_metadata_of(trained["bpe"], pre="gpt-4o")[P + "pre"] == "gpt-4o"
    with pytest.raises(DachengError, match="only BPE"):
        gguf_metadata_of(trained["unigram"])
    with pytest.raises(DachengError, match="only BPE"):
        gguf_metadata_of(tokenizer_from_sentencepiece(goldens / "vocabularies" / "unigram.model"))


def test_a_tiktoken_vocabulary_with_gaps_gets_fillers(goldens):
    tokenizer = tokenizer_from_tiktoken(goldens / "vocabularies" / "ranks.tiktoken", encoding="r50k_base")
    out = gguf_metadata_of(tokenizer)
    assert len(out[P + "tokens"]) == 50257 and out[P + "tokens"][40000] == "[PAD40000]"
    assert out[P + "token_type"][40000] == 5 and out[P + "pre"] == "gpt-2"
    again = tokenizer_from_gguf(out)
    assert again.encode_batch(HARD + MIXED) == tokenizer.encode_batch(HARD + MIXED)
