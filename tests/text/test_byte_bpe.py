"""Our byte-level BPE against three peers: Stanford CS336's reference, the tokenizers library, and tiktoken's GPT-2."""

from __future__ import annotations

import gzip
import itertools
import json
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_corpora import CHINESE, ENGLISH, HARD, MIXED, any_text
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core
from tokenizers.pre_tokenizers import Split

from dacheng.errors import DamagedFile, UsageError
from dacheng.text import ByteBPE, train_byte_bpe
from dacheng.text.byte_bpe import (
    _CLASSES,
    BYTE_TO_CHAR,
    from_printable,
    gpt2_split,
    merge_pair,
    pattern_split,
    to_printable,
)
from dacheng.text.training import split_pattern

EOT = "<|endoftext|>"


def library_trained(texts, vocab_size, pre) -> Core:
    core = Core(models.BPE())
    core.pre_tokenizer, core.decoder = pre, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.encode_special_tokens = True
    return core


def model_of(core: Core) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(core.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@pytest.fixture(scope="module")
def mixed() -> ByteBPE:
    return train_byte_bpe(MIXED, 1500)


@pytest.fixture(scope="module")
def gpt2(shared_data, tmp_path_factory) -> ByteBPE:
    directory = tmp_path_factory.mktemp("gpt2")
    for name in ("vocab.json", "merges.txt"):
        packed = (shared_data / "tokenizer_gpt2" / f"gpt2_{name}.gz").read_bytes()
        (directory / name).write_bytes(gzip.decompress(packed))
    return ByteBPE.load(directory)


# --- training ---------------------------------------------------------------------------------------------------------
@pytest.mark.oracle
def test_merges_are_those_of_the_cs336_reference(shared_data):
    folder = shared_data / "tokenizer_gpt2"
    corpus = (folder / "corpus.en").read_text(encoding="utf-8")
    lines = (folder / "train-bpe-reference-merges.txt").read_text(encoding="utf-8").splitlines()
    vocab, merges = train_byte_bpe([corpus], 500, ties="bytes").printable()
    assert merges == [tuple(line.split(" ")) for line in lines]
    assert vocab == json.loads((folder / "train-bpe-reference-vocab.json").read_text(encoding="utf-8"))


@pytest.mark.oracle
def test_merges_are_those_of_the_library(mixed):
    core = library_trained(MIXED, 1500, pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert mixed.printable() == model_of(core)
    assert mixed.vocab_size == 1500
    for text in [*MIXED, *HARD]:
        assert mixed.encode(text) == core.encode(text).ids


@pytest.mark.oracle
def test_with_the_pattern_of_our_tokenizers_too():
    split = Split(Regex(split_pattern()), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core = library_trained(MIXED, 900, pre_tokenizers.Sequence([split, byte_level]))
    ours = train_byte_bpe(MIXED, 900, split=pattern_split(split_pattern()))
    assert ours.printable() == model_of(core)
    assert [ours.encode(text) for text in HARD] == [core.encode(text).ids for text in HARD]


@pytest.mark.oracle
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(alphabet="ab 中\n", max_size=40), min_size=1, max_size=6), extra=st.integers(0, 30))
def test_merges_are_those_of_the_library_on_texts_full_of_ties(texts, extra):
    core = library_trained(texts, 257 + extra, pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert train_byte_bpe(texts, 257 + extra).printable() == model_of(core)


def naive(texts: list[str], merges: int, ties: str) -> list[tuple[bytes, bytes]]:
    """The definition, without an index or a heap: count all pairs, merge the best, again."""
    words = Counter(piece for text in texts for piece in gpt2_split(text))
    split = {word: [bytes([byte]) for byte in word.encode()] for word in words}
    order = {bytes([byte]): i for i, byte in enumerate(BYTE_TO_CHAR)}
    found = []
    for _ in range(merges):
        pairs = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(split[word]):
                pairs[pair] += count
        if not pairs:
            break
        most = max(pairs.values())
        tied = [pair for pair, count in pairs.items() if count == most]
        best = max(tied) if ties == "bytes" else min(tied, key=lambda pair: (order[pair[0]], order[pair[1]]))
        found.append(best)
        order[best[0] + best[1]] = len(order)
        for word, tokens in split.items():
            i, merged = 0, []
            while i < len(tokens):
                step = 2 if tuple(tokens[i : i + 2]) == best else 1
                merged.append(b"".join(tokens[i : i + step]))
                i += step
            split[word] = merged
    return found


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(alphabet="ab 中", max_size=25), max_size=5), ties=st.sampled_from(["ids", "bytes"]))
def test_the_index_and_the_heap_change_nothing(texts, ties):
    assert train_byte_bpe(texts, 257 + 12, ties=ties).merges == naive(texts, 12, ties)


def test_the_index_and_the_heap_change_nothing_on_real_text():
    for ties in ("ids", "bytes"):
        assert train_byte_bpe([ENGLISH, CHINESE], 257 + 120, ties=ties).merges == naive([ENGLISH, CHINESE], 120, ties)


def test_the_example_of_the_cs336_handout():
    words = "low low low low low lower lower widest widest widest newest newest newest newest newest newest"
    model = train_byte_bpe([words], 257 + 6, ties="bytes", split=str.split)
    assert [a + b for a, b in model.merges] == [b"st", b"est", b"ow", b"low", b"west", b"ne"]
    assert [model.decode([i]) for i in model.encode("newest")] == ["ne", "west"]


def test_a_merge_changes_the_counts_of_its_neighbours():
    assert merge_pair("xaby", "ab", "Z") == ("xZy", [("xa", -1), ("xZ", 1), ("by", -1), ("Zy", 1)])
    for word, pair in itertools.product(("aaaa", "aaa", "ababab", "xaax", "ab", "cc"), ("aa", "ab")):
        merged, changes = merge_pair(word, pair, "Z")
        expected = Counter(map("".join, itertools.pairwise(merged)))
        counted = Counter(map("".join, itertools.pairwise(word)))
        for changed, change in changes:
            counted[changed] += change
        counted.pop(pair, None)
        assert +counted == expected
        assert merged == word.replace(pair, "Z")


def test_pairs_that_are_too_rare_are_left():
    assert train_byte_bpe(["abab ab xy"], 400, min_frequency=3).merges == [(b"a", b"b")]
    assert train_byte_bpe([], 400).merges == []


def test_special_tokens_bound_merges_and_are_not_counted():
    model = train_byte_bpe([f"ab{EOT}ab{EOT}{EOT}cd<|x|>"], 1000, special_tokens=[EOT, "<|x|>"])
    assert {a + b for a, b in model.merges} == {b"ab", b"cd"}
    assert model.encode(f"ab{EOT}<|x|>", allow_special=True) == [model.vocab[b"ab"], 0, 1]
    plain = model.encode(f"ab{EOT}")
    assert {0, 1}.isdisjoint(plain)
    assert model.decode(plain) == f"ab{EOT}"
    assert model.decode([0, 1]) == f"{EOT}<|x|>"
    nested = train_byte_bpe(["a"], 258, special_tokens=["<a>", "<a><b>"])
    assert nested.encode("<a><b><a>", allow_special=True) == [1, 0]  # the longest


@pytest.mark.parametrize("size", [0, 256])
def test_a_vocabulary_smaller_than_the_bytes_is_refused(size):
    with pytest.raises(UsageError) as caught:
        train_byte_bpe(["text"], size)
    assert (caught.value.field, caught.value.value, caught.value.remedy) == ("vocab_size", size, "use at least 257")
    assert train_byte_bpe(["text"], 257).merges == []


@pytest.mark.parametrize("names", [["<a>", "<a>"], [""]])
def test_special_tokens_must_differ(names):
    with pytest.raises(UsageError, match="different and not empty"):
        train_byte_bpe(["text"], 300, special_tokens=names)


# --- splitting --------------------------------------------------------------------------------------------------------
@pytest.mark.oracle
@settings(max_examples=300, deadline=None)
@given(any_text)
def test_pre_tokens_are_those_of_the_library(text):
    if any(unicodedata.category(char) == "Cn" for char in text):
        return  # the library's Unicode tables may be newer than Python's
    library = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert [to_printable(piece.encode()) for piece in gpt2_split(text)] == [piece for piece, _ in library]


@pytest.mark.oracle
@pytest.mark.slow
def test_every_assigned_character_is_classed_as_in_the_library():
    assigned = [char for char in map(chr, range(0x110000)) if unicodedata.category(char) not in ("Cn", "Cs")]
    ours = "".join(assigned).translate(_CLASSES)
    for pattern, classes in ((r"\p{L}+", "adelmrstv"), (r"\p{N}+", "0"), (r"\s+", " \t")):
        others = Split(Regex(pattern), "removed").pre_tokenize_str("".join(assigned))
        assert "".join(piece for piece, _ in others) == "".join(
            char for char, found in zip(assigned, ours) if found not in classes
        )


def test_the_printable_alphabet_is_one_to_one():
    assert len(set(BYTE_TO_CHAR.values())) == len(BYTE_TO_CHAR) == 256
    assert (to_printable(b" the\n"), from_printable("ĠtheĊ")) == ("ĠtheĊ", b" the\n")
    assert all(from_printable(to_printable(bytes([byte]))) == bytes([byte]) for byte in range(256))


# --- encoding ---------------------------------------------------------------------------------------------------------
@settings(max_examples=200, deadline=None)
@given(any_text)
def test_any_text_comes_back(mixed, text):
    ids = mixed.encode(text)
    assert mixed.decode(ids) == text
    assert mixed.decode_bytes(ids) == text.encode()


@pytest.mark.oracle
def test_ids_of_gpt2_are_those_of_tiktoken(gpt2, goldens):
    for row in json.loads((goldens / "gpt2_ids.json").read_text()):
        assert gpt2.encode(row["text"]) == row["ids"]
    assert gpt2.vocab_size == 50257
    assert gpt2.encode("a<|endoftext|>", allow_special=True) == [64, 50256]


@pytest.mark.oracle
def test_ids_of_gpt2_are_those_of_the_library_on_real_text(gpt2, shared_data):
    vocab, merges = gpt2.printable()
    core = Core(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    read = lambda *parts: gzip.decompress(shared_data.joinpath(*parts).read_bytes()).decode()  # noqa: E731
    texts = {
        "en": read("wikitext2", "valid.txt.gz")[:100_000],
        "zh": read("zh_classics", "红楼梦.txt.gz")[:20_000],
        "code": read("humaneval", "HumanEval.jsonl.gz")[:60_000],
        "emoji": "".join(json.loads(line)["char"] for line in emoji_lines(shared_data)),
    }
    for name, text in texts.items():
        ids = gpt2.encode(text)
        assert ids == core.encode(text).ids, name
        assert gpt2.decode(ids) == text


def emoji_lines(shared_data) -> list[str]:
    return (shared_data / "noto_emoji32" / "captions.jsonl").read_text(encoding="utf-8").splitlines()


def test_a_long_run_takes_no_longer_than_it_should(mixed):
    text = "a" * 40_000  # one pre-token; searching it again after every merge would take hours
    assert mixed.decode(mixed.encode(text)) == text


def test_files_of_gpt2_are_written_and_read(mixed, tmp_path):
    mixed.save(tmp_path / "bpe")
    again = ByteBPE.load(tmp_path / "bpe")
    assert again.printable() == mixed.printable()
    assert [again.encode(text) for text in HARD] == [mixed.encode(text) for text in HARD]
    merges = (tmp_path / "bpe" / "merges.txt").read_text(encoding="utf-8")
    (tmp_path / "bpe" / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    assert ByteBPE.load(tmp_path / "bpe").merges == mixed.merges


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("vocab.json", "{"),
        ("vocab.json", "[]"),
        ("vocab.json", '{"<|endoftext|>": 0, "a b": 1}'),
        ("vocab.json", '{"a": 0}'),
        ("vocab.json", '{"<|endoftext|>": 0, "a": 1}'),
        ("merges.txt", "a\n"),
        ("merges.txt", "a b c\n"),
        ("merges.txt", "€ a\n"),
        ("merges.txt", "z zzzz\n"),
        ("merges.txt", None),
    ],
)
def test_damaged_files_are_refused(mixed, tmp_path, file, content):
    mixed.save(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(DamagedFile):
        ByteBPE.load(tmp_path)


def test_two_tokens_with_one_id_are_refused(mixed):
    with pytest.raises(DamagedFile, match="share one id"):
        ByteBPE(mixed.vocab, mixed.merges, special_tokens={EOT: 5})


def test_wrong_ids_and_half_characters_are_refused(mixed):
    with pytest.raises(UsageError) as caught:
        mixed.decode([1, 99_999])
    assert caught.value.value == 99_999
    with pytest.raises(UsageError, match="surrogate"):
        mixed.encode("\ud800")
    with pytest.raises(UsageError, match="surrogate"):
        train_byte_bpe(["\ud800"], 300)
