"""Small vocabularies in foreign formats: the ids of their own libraries, and texts that come back."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from text_corpora import HARD, any_text

from dacheng.errors import DachengError, DamagedFile
from dacheng.text import Tokenizer
from dacheng.text.vocabularies import (
    tokenizer_from_gpt2,
    tokenizer_from_sentencepiece,
    tokenizer_from_tekken,
    tokenizer_from_tiktoken,
    tokenizer_from_wordpiece,
)
from dacheng.text.vocabularies.byte_level import byte_level_core
from dacheng.text.vocabularies.merges import last_pair, merges_of
from dacheng.text.vocabularies.splits import SPLITS, split_name, split_named
from dacheng.text.vocabularies.tiktoken import read_ranks, vocab_and_merges

pytestmark = pytest.mark.oracle
LOSSLESS = ("llama", "gemma", "unigram_bytes")


@pytest.fixture(scope="module")
def files(goldens):
    return goldens / "vocabularies"


@pytest.fixture(scope="module")
def expected(files):
    return json.loads((files / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def models(files, expected):
    return {name: tokenizer_from_sentencepiece(files / f"{name}.model") for name in expected["models"]}


# --- SentencePiece ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["llama", "gemma", "unigram", "unigram_bytes"])
def test_sentencepiece_ids_are_its_own(models, expected, name):
    tokenizer, answer = models[name], expected["models"][name]
    assert tokenizer.vocab_size == answer["size"]
    for text, ids in zip(expected["texts"], answer["ids"]):
        found = tokenizer.encode(text)
        if name == "unigram" and "</s>" in text:  # where "<" is unknown, a special token's name cuts a row of unknowns
            found, ids = ([i for i, before in zip(row, [None, *row]) if i != 0 or before != 0] for row in (found, ids))
        assert found == ids, text
        assert tokenizer.special_ids.isdisjoint(found) or name == "unigram"
        if name in LOSSLESS:
            assert tokenizer.decode(found) == text.replace("▁", " ")  # it has no other way to write a space


def test_the_roles_are_the_files(models):
    llama, gemma = models["llama"], models["gemma"]
    assert (llama.unk_id, llama.bos_id, llama.eos_id) == (0, 1, 2)
    assert (gemma.pad_id, gemma.eos_id, gemma.bos_id, gemma.unk_id) == (0, 1, 2, 3)
    assert llama.encode("fox", add_special_tokens=True) == [1, *llama.encode("fox")]
    assert llama.encode("[INST]fox", allow_special=True)[0] == llama.token_to_id("[INST]")
    assert "[REF]" in llama._vocab and "[REF]" not in llama.special_tokens


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=60, deadline=None)
@given(text=any_text)
def test_lossless_models_give_any_text_back(models, name, text):
    tokenizer = models[name]
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


@pytest.mark.parametrize("name", ["llama", "gemma", "unigram", "unigram_bytes"])
def test_what_is_saved_is_the_same_tokenizer(models, name, tmp_path, expected):
    models[name].save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == models[name].fingerprint
    assert again.encode_batch(expected["texts"]) == models[name].encode_batch(expected["texts"])
    assert again.encode("a", add_special_tokens=True) == models[name].encode("a", add_special_tokens=True)


# --- byte-level -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["gpt-2", "smollm", "dbrx", "stablelm2", "gpt-4o", "tekken"])
def test_ranks_and_splits_give_tiktokens_ids(files, expected, name):
    vocab, merges = vocab_and_merges(read_ranks(files / "ranks.tiktoken"))
    assert len(merges) == len(vocab) - 256
    core = byte_level_core(vocab, merges, SPLITS[name])
    for text, ids in zip(expected["texts"], expected["splits"][name]):
        assert core.encode(text, add_special_tokens=False).ids == ids, text
    assert split_name(core) == name


def test_a_rank_file_becomes_a_tokenizer(files, expected):
    tokenizer = tokenizer_from_tiktoken(files / "ranks.tiktoken", encoding="r50k_base")
    assert tokenizer.encode_batch(expected["texts"]) == expected["splits"]["gpt-2"]
    assert tokenizer.special_tokens == {"<|endoftext|>": 50256}
    assert [tokenizer.decode(tokenizer.encode(text)) for text in HARD] == HARD
    with pytest.raises(DachengError, match="nothing tells which encoding"):
        tokenizer_from_tiktoken(files / "ranks.tiktoken")
    with pytest.raises(DachengError, match="no such encoding"):
        tokenizer_from_tiktoken(files / "ranks.tiktoken", encoding="gpt-7")


def tekken_of(files, expected, **config):
    ranks = read_ranks(files / "ranks.tiktoken")
    sizes = {"default_vocab_size": 25 + len(ranks) - 10, "default_num_special_tokens": 25}
    vocab = [{"rank": r, "token_bytes": base64.b64encode(t).decode(), "token_str": None} for t, r in ranks.items()]
    return {"config": {"pattern": SPLITS["tekken"].patterns[0]} | sizes | config, "vocab": vocab}


def test_a_tekken_file_becomes_a_tokenizer(files, expected, tmp_path):
    (tmp_path / "tekken.json").write_text(json.dumps(tekken_of(files, expected)))
    tokenizer = tokenizer_from_tekken(tmp_path / "tekken.json")
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 11)
    assert tokenizer.id_to_token(24) == "<SPECIAL_24>"
    last = 25 + len(read_ranks(files / "ranks.tiktoken")) - 10  # the last ten ranks are not used
    for text, ids in zip(expected["texts"], expected["splits"]["tekken"]):
        found = tokenizer.encode(text)
        assert found == [i + 25 for i in ids] or any(i + 25 >= last for i in ids)
        assert tokenizer.decode(found) == text
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint


def test_gpt2_files_give_gpt2s_ids(shared_data, goldens, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes(
            gzip.decompress((shared_data / "tokenizer_gpt2" / f"gpt2_{name}.gz").read_bytes())
        )
    tokenizer = tokenizer_from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
    for row in json.loads((goldens / "gpt2_ids.json").read_text(encoding="utf-8")):
        assert tokenizer.encode(row["text"]) == row["ids"]
        assert tokenizer.decode(row["ids"]) == row["text"]
    assert tokenizer.special_tokens == {"<|endoftext|>": 50256}
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MysteryTokenizer"}))
    with pytest.raises(DachengError, match="how this class cuts"):
        Tokenizer.load(tmp_path)


def test_a_wordpiece_vocabulary_becomes_a_tokenizer(shared_data):
    path = shared_data / "tokenizer_bert_zh" / "vocab.txt"
    tokenizer = tokenizer_from_wordpiece(path, lowercase=False)
    names = path.read_text(encoding="utf-8").split("\n")
    ids = tokenizer.encode("使用语言模型, playing", add_special_tokens=True)
    assert [names[i] for i in ids] == ["[CLS]", *"使用语言模型,", "play", "##ing", "[SEP]"]
    assert tokenizer.eos_id == names.index("[SEP]")


# --- directories ------------------------------------------------------------------------------------------------------
def test_a_directory_with_a_model_file_loads(files, models, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((files / "llama.model").read_bytes())
    assert Tokenizer.load(tmp_path).fingerprint == models["llama"].fingerprint
    size = models["llama"].vocab_size
    added = {"content": "<|user|>", "special": False, "rstrip": True, "lstrip": False, "normalized": False}
    config = {
        "tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "add_bos_token": False, "add_eos_token": True,
        "added_tokens_decoder": {"1": {"content": "<s>", "special": True}, str(size): added},
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("fox", add_special_tokens=True) == [*models["llama"].encode("fox"), 2]
    assert tokenizer.encode("<|user|>  fox")[0] == size
    assert tokenizer.decode(tokenizer.encode("<|user|>  fox")).count(" ") < 3  # rstrip took them
    config["added_tokens_decoder"] = {str(size + 5): added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedFile, match="declared with the id"):
        Tokenizer.load(tmp_path)


def test_classes_that_shift_ids_are_refused(files, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((files / "unigram.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CamembertTokenizer"}))
    with pytest.raises(DachengError, match="CamembertTokenizer changes the ids"):
        Tokenizer.load(tmp_path)


def test_unknown_splits_are_refused_by_name():
    with pytest.raises(DachengError) as caught:
        split_named("superbpe-9")
    assert caught.value.value == "superbpe-9" and "qwen2" in caught.value.remedy


# --- merges -----------------------------------------------------------------------------------------------------------
def test_merges_are_what_encoding_each_token_ends_with(files):
    vocab, merges = vocab_and_merges(read_ranks(files / "ranks.tiktoken"))
    assert dict(zip(map("".join, merges), merges)) == {t: last_pair(t, vocab) for t in vocab if len(t) > 1}


def test_of_equal_scores_the_leftmost_pair_comes_first():
    rows = {"_" * n: 0 for n in range(2, 9)}
    assert merges_of(rows, rows, "_") == [("_" * (n - 1), "_") for n in range(2, 9)]


def test_a_token_made_through_a_later_one_and_one_that_nothing_makes():
    priority = {"abc": 0, "bc": 1, "xyz": 2, "ab": 9, "abcabc": 10}
    # "abc" comes first but can only be made once "bc" is; no two neighbours of "xyz" are a token.
    assert merges_of(priority, priority, "abcxyz") == [("a", "bc"), ("b", "c"), ("a", "b"), ("abc", "abc")]


@settings(max_examples=200, deadline=None)
@given(
    any_text.map(lambda text: list(dict.fromkeys(text[i : i + n] for n in (2, 3, 4, 5) for i in range(len(text))))[:60])
)
def test_merges_agree_with_the_definition_on_any_vocabulary(pieces):
    priority = {piece: (i * 7) % len(pieces) for i, piece in enumerate(pieces)}
    ordered = sorted(pieces, key=priority.__getitem__)
    letters = set("".join(pieces))
    merges = merges_of(ordered, priority, letters)
    for piece in pieces:
        if len(piece) > 1:
            assert [pair for pair in merges if "".join(pair) == piece] == [p for p in [last_pair(piece, priority)] if p]


def test_the_readers_cost_nothing_until_they_are_used():
    heavy = {"tokenizers", "numpy", "torch", "base64"}
    code = f"import dacheng.text, dacheng.text.vocabularies, sys; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
