"""Tokenizer: any text comes back, bytes of tokens are exact, special tokens only when asked."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_corpora import HARD, MIXED, any_text
from tokenizers import Tokenizer as Core
from tokenizers import models, pre_tokenizers

from dacheng.errors import DachengError, DamagedFile, UsageError
from dacheng.text import Tokenizer


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_come_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.special_ids.isdisjoint(ids)


@pytest.mark.parametrize("kind_", ["bpe", "unigram", "wordpiece"])
def test_any_text_comes_back_and_token_bytes_are_its_bytes(trained, kind_):
    tokenizer = trained[kind_]
    lengths = tokenizer.byte_lengths()

    @settings(max_examples=150, deadline=None)
    @given(any_text)
    def check(text):
        ids = tokenizer.encode(text)
        encoded = text.encode()
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == encoded == tokenizer.decode_bytes(ids)
        assert sum(int(lengths[i]) for i in ids) == len(encoded)
        assert tokenizer.special_ids.isdisjoint(ids)

    check()


def test_text_that_names_special_tokens_is_text_unless_asked(tokenizer):
    text = "a<|endoftext|>b<|pad|>"
    plain = tokenizer.encode(text)
    assert tokenizer.special_ids.isdisjoint(plain)
    assert tokenizer.decode(plain) == text
    special = tokenizer.encode(text, allow_special=True)
    assert special == [*tokenizer.encode("a"), tokenizer.eos_id, *tokenizer.encode("b"), tokenizer.pad_id]
    assert tokenizer.decode(special) == "ab"
    assert tokenizer.decode(special, skip_special_tokens=False) == text
    assert tokenizer.encode(text) == plain  # asking once leaves no state behind


def test_special_ids_have_roles_and_no_bytes(tokenizer):
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (0, 1, None)
    assert tokenizer.special_tokens["<|endoftext|>"] == 0
    assert all(tokenizer.token_bytes(i) == b"" for i in tokenizer.special_ids)
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths.dtype == np.int64
    assert set(np.flatnonzero(lengths == 0)) == tokenizer.special_ids


def test_a_batch_is_its_texts_one_by_one(tokenizer):
    texts = [*HARD, *MIXED]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []
    marked = tokenizer.encode_batch(["<|pad|>", "x"], allow_special=True)
    assert marked == [[tokenizer.pad_id], tokenizer.encode("x")]


@pytest.mark.parametrize("wrong", [-1, 10**6, -(10**6)])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer, wrong):
    for act in (
        lambda: tokenizer.decode([3, wrong]),
        lambda: tokenizer.token_bytes(wrong),
        lambda: tokenizer.stream_decoder().push(wrong),
    ):
        with pytest.raises(UsageError) as caught:
            act()
        assert (caught.value.field, caught.value.value) == ("id", wrong)


def test_ids_of_numpy_and_torch_decode(tokenizer):
    import torch

    ids = tokenizer.encode("some text")
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(torch.tensor(ids)) == "some text"


def test_half_a_surrogate_pair_is_named(tokenizer):
    for act in (lambda: tokenizer.encode("a\ud800b"), lambda: tokenizer.encode_batch(["fine", "a\ud800b"])):
        with pytest.raises(UsageError) as caught:
            act()
        assert caught.value.value == "a\ud800b"
        assert "surrogate" in str(caught.value)


@pytest.mark.parametrize("wrong", [None, b"bytes", 3])
def test_what_is_no_string_is_refused(tokenizer, wrong):
    with pytest.raises(UsageError, match="must be a string"):
        tokenizer.encode_batch(["fine", wrong])


def test_one_string_is_no_batch(tokenizer):
    with pytest.raises(UsageError, match="list of texts"):
        tokenizer.encode_batch("text")


def test_a_directory_gives_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    again = Tokenizer.load(tmp_path / "new" / "folder")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode_batch(MIXED) == tokenizer.encode_batch(MIXED)
    roles = ("vocab_size", "eos_id", "bos_id", "pad_id", "unk_id", "special_tokens")
    assert [getattr(again, role) for role in roles] == [getattr(tokenizer, role) for role in roles]
    again.save(tmp_path / "second")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "new" / "folder" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_the_fingerprint_is_of_what_ids_depend_on(trained, tmp_path):
    prints = {tokenizer.fingerprint for tokenizer in trained.values()}
    assert len(prints) == 3
    assert all(len(print_) == hashlib.sha256().digest_size * 2 for print_ in prints)
    bpe = trained["bpe"]
    bpe.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ messages }}"}))
    chatty = Tokenizer.load(tmp_path)
    assert chatty.fingerprint == bpe.fingerprint
    assert chatty.chat_template == "{{ messages }}"
    assert Tokenizer.load(tmp_path, eos_token="<|pad|>").fingerprint != bpe.fingerprint


def test_it_goes_to_other_processes_and_threads(trained):
    bpe = trained["bpe"]
    copy = pickle.loads(pickle.dumps(bpe))
    assert copy.fingerprint == bpe.fingerprint
    assert copy.encode("<|endoftext|>") == bpe.encode("<|endoftext|>") != [0]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        marked = [pool.submit(bpe.encode, "a<|endoftext|>b", i % 2 == 0) for i in range(200)]
        assert [0 in future.result() for future in marked] == [i % 2 == 0 for i in range(200)]


@pytest.mark.process
def test_a_worker_process_encodes_the_same(trained):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(trained["bpe"].encode, (HARD[6],)) == trained["bpe"].encode(HARD[6])


def test_importing_the_room_is_free():
    code = "import dacheng.text, sys; print(sorted({'tokenizers', 'numpy', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_family_that_would_read_special_names_in_text_is_made_to_spell_them():
    pieces = [("</s>", 0.0), ("<pad>", 0.0), ("<unk>", 0.0), ("s>", -1.0), ("<", -3.0), ("/", -3.0), ("x", -3.0)]
    core = Core(models.Unigram([*pieces, ("▁", -2.0), (">", -3.0), ("s", -3.0)], unk_id=2))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    assert 0 in core.encode("x</s>").ids  # the library itself lets a text end the text
    tokenizer = Tokenizer(core, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    spell = lambda text: [tokenizer.id_to_token(i) for i in tokenizer.encode(text)]  # noqa: E731
    assert spell("x</s>x") == ["▁", "x", "<", "/", "s>", "x"]
    assert spell("</s></s>") == ["▁", "<", "/", "s>", "<", "/", "s>"]
    assert tokenizer.encode("</s>" * 20_000) == [7, *[4, 5, 3] * 20_000]  # not in quadratic time
    assert spell("x y") == ["▁", "x", "▁", "<unk>"]
    assert tokenizer.encode("x</s>", allow_special=True)[-1] == 0


def test_a_special_token_of_one_character_cannot_be_spelled():
    core = Core(models.Unigram([("$", 0.0), ("x", -1.0), ("<unk>", -9.0)], unk_id=2))
    tokenizer = Tokenizer(core, eos_token="$", unk_token="<unk>")
    assert tokenizer.encode("x") == [1]
    with pytest.raises(DachengError, match="only write a part of the text as a special token"):
        tokenizer.encode("x$")


def test_a_family_without_a_token_for_the_unknown_says_so():
    core = Core(models.WordPiece({"[SEP]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(DachengError, match="cannot encode the text"):
        Tokenizer(core, eos_token="[SEP]").encode("b")


def test_an_unknown_character_is_not_the_end_of_the_text():
    pieces = [("</s>", 0.0), ("a", -1.0)]
    tokenizer = Tokenizer(Core(models.Unigram(pieces, unk_id=0)), eos_token="</s>", unk_token="</s>")
    assert tokenizer.encode("a") == [1]
    with pytest.raises(DachengError, match="as a special token"):
        tokenizer.encode("a中")


def test_ids_far_apart_are_refused():
    core = Core(models.WordLevel({"a": 0, "</s>": 4_000_000_000}, unk_token="a"))
    with pytest.raises(DamagedFile, match="ids up to 4000000000"):
        Tokenizer(core, eos_token="</s>")


def test_ids_without_token_stand_for_nothing():
    core = Core(models.WordLevel({"a": 0, "</s>": 7}, unk_token="a"))
    tokenizer = Tokenizer(core, eos_token="</s>")
    assert tokenizer.vocab_size == 8
    assert tokenizer.token_bytes(3) == b""
    assert tokenizer.id_to_token(3) is None
    assert tokenizer.id_to_token(-1) is tokenizer.id_to_token(1 << 40) is None
    assert tokenizer.token_to_id("b") is None


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_ids_decode_as_their_bytes(trained, data):
    tokenizer = trained["bpe"]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    joined = b"".join(map(tokenizer.token_bytes, ids))
    assert tokenizer.decode(ids) == joined.decode("utf-8", "replace")
    assert tokenizer.decode(ids) == tokenizer._core.decode(ids)  # and as the library decodes them
