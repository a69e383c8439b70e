"""Vocabularies that lie: cut short, garbled, of wrong types, of absurd sizes. Each is refused by name."""

from __future__ import annotations

import base64
import json
import random
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.errors import DachengError, DamagedFile
from dacheng.text import Tokenizer, gguf_metadata_of, tokenizer_from_gguf
from dacheng.text.vocabularies import (
    tokenizer_from_gpt2,
    tokenizer_from_sentencepiece,
    tokenizer_from_tekken,
    tokenizer_from_tiktoken,
    tokenizer_from_wordpiece,
)
from dacheng.text.vocabularies.charsmap import check_charsmap
from dacheng.text.vocabularies.protobuf import fields
from dacheng.text.vocabularies.sentencepiece_model import parse_model

TEXT = "The ＦＵＬＬ café [REF] ½ e\u0301 ﬁ 中文 👍🏽 <s> \t x" * 3


@pytest.fixture(scope="module")
def files(goldens):
    return goldens / "vocabularies"


@pytest.fixture(scope="module")
def metadata(files):
    """A tokenizer of each kind that GGUF has."""
    byte_level = gguf_metadata_of(tokenizer_from_tiktoken(files / "ranks.tiktoken", "r50k_base"))
    first = {key: value[:480] for key, value in byte_level.items() if key.endswith((".tokens", ".token_type"))}
    ends = {key: 0 for key in byte_level if key.endswith("_token_id")}
    return [gguf_metadata_of(tokenizer_from_sentencepiece(files / "llama.model")), byte_level | first | ends]


def refuse_or_work(read, *arguments):
    """A tokenizer that works, or an error that says what is wrong."""
    try:
        tokenizer = read(*arguments)
    except DachengError as error:
        assert error.problem and error.field and error.remedy
        return
    for text in (TEXT, ""):
        try:
            ids = tokenizer.encode(text)
        except DachengError:  # no unknown token, say
            continue
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert isinstance(tokenizer.decode(ids), str)


def damaged(data: bytes, seed: int) -> bytes:
    draw = random.Random(seed)
    way = draw.randrange(4)
    if way == 0:
        return data[: draw.randrange(len(data))]
    if way == 1:
        start = draw.randrange(len(data))
        return data[:start] + data[start + draw.randrange(1, 40) :]
    changed = bytearray(data)
    for _ in range(draw.choice([1, 3, 30])):
        changed[draw.randrange(len(data))] = draw.randrange(256) if way == 2 else draw.choice([0, 255, 0x80, 0x7F])
    return bytes(changed)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(["llama", "gemma", "unigram", "unigram_bytes"]))
def test_damaged_sentencepiece_models_are_refused_or_work(files, tmp_path_factory, seed, name):
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.model"
    path.write_bytes(damaged((files / f"{name}.model").read_bytes(), seed))
    refuse_or_work(tokenizer_from_sentencepiece, path)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damaged_rank_files_are_refused_or_work(files, tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("damaged") / "x.tiktoken"
    path.write_bytes(damaged((files / "ranks.tiktoken").read_bytes(), seed))
    refuse_or_work(tokenizer_from_tiktoken, path, "r50k_base")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_damage(data):
    try:
        for number, kind, value in fields(memoryview(data), "message"):
            assert number > 0 and kind in (0, 1, 2, 5) and (isinstance(value, int) or len(value) <= len(data))
        parse_model(data)
    except DachengError as error:
        assert error.remedy


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_garbled_gguf_metadata_is_refused_or_works(metadata, data):
    whole = data.draw(st.sampled_from(metadata))
    key = data.draw(st.sampled_from(sorted(whole)))
    value = data.draw(JUNK)
    if isinstance(whole[key], list) and data.draw(st.booleans()):
        value = list(whole[key])
        place = data.draw(st.integers(0, len(value) - 1))
        value[place : place + data.draw(st.integers(0, 3))] = data.draw(st.lists(JUNK, max_size=3))
    refuse_or_work(tokenizer_from_gguf, whole | {key: value})


def tekken(files, **changes):
    lines = (files / "ranks.tiktoken").read_bytes().split()
    vocab = [{"rank": int(r), "token_bytes": t.decode(), "token_str": None} for t, r in zip(lines[::2], lines[1::2])]
    config = {"pattern": r"\S+|\s+", "default_vocab_size": len(vocab) + 20, "default_num_special_tokens": 20}
    return {"config": config | changes, "vocab": vocab}


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_garbled_tekken_files_are_refused_or_work(files, tmp_path_factory, data):
    content = tekken(files)
    places = [(content, key) for key in ("config", "vocab", "special_tokens")]
    places += [(content["config"], key) for key in content["config"]]
    places += [(content["vocab"][7], "rank"), (content["vocab"][9], "token_bytes"), (content["vocab"], 11)]
    place, key = data.draw(st.sampled_from(places))
    place[key] = data.draw(JUNK)
    path = tmp_path_factory.mktemp("damaged") / "tekken.json"
    path.write_text(json.dumps(content))
    refuse_or_work(tokenizer_from_tekken, path)


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"default_vocab_size": 10**12}, "default_vocab_size"),
        ({"default_num_special_tokens": 10**12, "default_vocab_size": 10**12 + 5}, "default_vocab_size"),
        ({"default_num_special_tokens": -1}, "default_vocab_size"),
        ({"pattern": "("}, "pattern"),
        ({"pattern": None}, "pattern"),
    ],
)
def test_absurd_tekken_sizes_are_refused_at_once(files, tmp_path, changes, field):
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(files, **changes)))
    started = time.perf_counter()
    with pytest.raises(DamagedFile) as caught:
        tokenizer_from_tekken(tmp_path / "tekken.json")
    assert field in caught.value.field and time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "no tokens"),
        (b"\n\n", "no tokens"),
        (b"!!! 0\n", "no base64"),
        (b"YQ==\n", "line 1"),
        (b"YQ== -1\n", "line 1"),
        (b"YQ== 99999999999\n", "line 1"),
        (b"YQ== 0\nYQ== 1\n", "twice"),
        (b"YQ== 0\nYg== 0\n", "share one id"),
        (b"YQ== 0\nYg== 999999999\n", "out of range"),
        (base64.b64encode(b"a" * 5000) + b" 0\n", "5000 bytes"),
        (b"YQ== 0\n", "not byte-level"),
    ],
)
def test_rank_files_that_lie(tmp_path, content, problem):
    (tmp_path / "x.tiktoken").write_bytes(content)
    with pytest.raises(DamagedFile, match=problem):
        tokenizer_from_tiktoken(tmp_path / "x.tiktoken", encoding="r50k_base")


def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(name, kind=1, score=-1.0):
    return field(1, field(1, name) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))


SMALL = piece(b"<unk>", 2) + piece(b"</s>", 3) + piece(b"a") + piece(b"b")


@pytest.mark.parametrize(
    "data, problem",
    [
        (b"", "no pieces"),
        (SMALL + piece(b"a"), "there twice"),
        (SMALL + piece(b""), "empty"),
        (SMALL + piece(b"\xff"), "no UTF-8"),
        (SMALL + piece(b"c", 9), "no such type"),
        (SMALL + piece(b"c", 2), "unknown one"),
        (SMALL + piece(b"c", 1, float("inf")), "no number"),
        (SMALL + b"\x0a" + varint(2**40), "are left"),
        (SMALL + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "more than 64 bits"),
        (SMALL + b"\x0b", "unknown type"),
        (SMALL + b"\x08\x01", "no message"),
        (SMALL + field(2, b"\x18\x03"), "word"),
        (SMALL + field(2, b"\x98\x02\x01"), "each byte"),
        (SMALL + field(2, b"\xc0\x01\x01"), "spaces behind words"),
        (SMALL + field(3, b"\x28\x00"), "plain spaces"),
        (SMALL + field(5, field(2, b"abc")), "rewritten output"),
        (SMALL + field(3, field(2, b"abc")), "too short"),
        (SMALL + field(3, field(2, struct.pack("<I", 2**31) + b"x" * 9)), "trie's size"),
        (SMALL + field(3, field(2, struct.pack("<I", 1024) + b"\0\xfc\xff\x0f" * 256 + b"a\0")), "out of itself"),
        (SMALL + field(3, field(2, struct.pack("<I", 1024) + b"\0\x01\0\0" * 256 + b"ab")), "does not end"),
    ],
)
def test_sentencepiece_models_that_lie(tmp_path, data, problem):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(DachengError, match=problem) as caught:
        tokenizer_from_sentencepiece(tmp_path / "tokenizer.model")
    assert caught.value.field and caught.value.remedy


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_character_map_that_passes_can_be_walked(files, seed):
    from tokenizers import normalizers

    whole = parse_model((files / "unigram.model").read_bytes()).precompiled_charsmap
    changed = damaged(whole, seed)
    try:
        check_charsmap(changed)
    except DamagedFile:
        return
    normalizers.Precompiled(changed).normalize_str(TEXT + "".join(map(chr, range(0x20, 0x3000, 7))))


@pytest.mark.parametrize("name, content", [
    ("vocab.json", "[]"),
    ("vocab.json", '{"a": 1.5}'), ("vocab.json", '{"a": true}'), ("vocab.json", '{"a": 1, "b": 1}'),
    ("vocab.json", '{"a": 99999999999}'), ("vocab.json", "{"), ("vocab.json", '{"a": 0}'), ("vocab.json", "[" * 99999),
    ("merges.txt", "a b c"), ("merges.txt", "a"), ("merges.txt", "zz qq"),
])  # fmt: skip
def test_gpt2_files_that_lie(tmp_path, name, content):
    from dacheng.text.byte_bpe import BYTE_TO_CHAR

    (tmp_path / "vocab.json").write_text(
        json.dumps({char: i for i, char in enumerate([*BYTE_TO_CHAR.values(), "</s>"])})
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert tokenizer_from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt").eos_id == 256
    (tmp_path / name).write_text(content)
    with pytest.raises(DamagedFile) as caught:
        tokenizer_from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert caught.value.field and caught.value.remedy


def test_files_that_cannot_be_opened_and_empty_directories(tmp_path):
    for read in (
        tokenizer_from_sentencepiece,
        tokenizer_from_tiktoken,
        tokenizer_from_tekken,
        tokenizer_from_wordpiece,
    ):
        with pytest.raises(DachengError, match="cannot open"):
            read(tmp_path / "absent")
    with pytest.raises(DachengError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("hello\nworld\n")
    with pytest.raises(DamagedFile, match=r"no \[UNK\]"):
        Tokenizer.load(tmp_path)
