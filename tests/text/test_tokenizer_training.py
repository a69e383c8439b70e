"""Training: what the pre-tokens are, the same result every time, and errors before any work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from text_corpora import CHINESE, ENGLISH, HARD, MIXED

from dacheng.errors import UsageError
from dacheng.text import Tokenizer, train_tokenizer
from dacheng.text.training import CONTINUES, pre_tokenizer

LEAST = {"bpe": 258, "unigram": 258, "wordpiece": 515}


def pieces(text: str, **options) -> list[str]:
    pre = pre_tokenizer(**options)
    return [text[start:end] for _, (start, end) in pre.pre_tokenize_str(text)]


def test_pre_tokens():
    assert pieces("I'm here, they'LL go") == ["I", "'m", " here", ",", " they", "'LL", " go"]
    assert pieces("x = foo(bar) != 1") == ["x", " =", " foo", "(bar", ")", " !=", " ", "1"]
    assert pieces("a  b\n\n\tc  ") == ["a", " ", " b", "\n\n", "\tc", "  "]
    assert pieces("मस्ती cafe\u0301s") == ["मस्ती", " cafe\u0301s"]


def test_a_chinese_run_is_a_pre_token():
    assert pieces("我用Python写(代码)。 好") == ["我用", "Python", "写", "(", "代码", ")。", " ", "好"]
    assert pieces("我用Python写(代码)", isolate_han=False) == ["我用Python写", "(代码", ")"]


@pytest.mark.parametrize(
    ("digits", "expected"),
    [(1, ["1", "2", "3", "4", "5"]), (2, ["12", "34", "5"]), (3, ["123", "45"])],
)
def test_digits_are_grouped(digits, expected):
    assert pieces("12345", digits=digits) == expected
    tokenizer = train_tokenizer(["12345 " * 50], vocab_size=400, digits=digits)
    assert max(len(tokenizer.token_bytes(i).strip()) for i in range(tokenizer.vocab_size)) == digits


def test_no_token_crosses_from_chinese_to_anything_else(trained):
    han = "滚长江东逝水浪花英雄是非成败转头空模型在年的数量词元"
    for tokenizer in trained.values():
        for token_id in range(tokenizer.vocab_size):
            text = tokenizer.token_bytes(token_id).decode("utf-8", "ignore")
            if any(char in han for char in text):
                assert all(char > "\u3007" for char in text), text


def test_the_vocabulary_has_the_size_asked_for_and_starts_with_the_special_tokens(trained, kind):
    tokenizer = trained[kind]
    assert tokenizer.vocab_size == {"bpe": 700, "unigram": 500, "wordpiece": 900}[kind]
    assert [tokenizer.id_to_token(i) for i in range(2)] == ["<|endoftext|>", "<|pad|>"]
    assert {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)} >= {bytes([byte]) for byte in range(256)}


def test_frequent_words_are_tokens(trained, kind):
    tokenizer = trained[kind]
    words = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert {b" the", b" of"} <= words
    assert len(tokenizer.encode(ENGLISH)) < 0.65 * len(ENGLISH.encode())
    chinese = train_tokenizer([CHINESE * 9], kind, LEAST[kind] + 150)
    # Unigram's seeds are substrings of two different pre-tokens, so what a small corpus only repeats, it doesn't learn
    limit = 0.75 if kind == "unigram" else 0.5
    assert len(chinese.encode(CHINESE)) < limit * len(CHINESE.encode())


@pytest.mark.parametrize("size_above_least", [0, 1, 7])
def test_the_smallest_vocabularies_still_give_any_text_back(kind, size_above_least):
    size = LEAST[kind] + size_above_least
    tokenizer = train_tokenizer([ENGLISH], kind, size)
    assert tokenizer.vocab_size == size
    for text in HARD:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("corpus", ["a", "ab", "\0", "a" * 300, "好", " ", "\n\n"])
def test_the_smallest_corpora(kind, corpus):
    tokenizer = train_tokenizer([corpus], kind, LEAST[kind] + 20)
    assert LEAST[kind] <= tokenizer.vocab_size <= LEAST[kind] + 20
    for text in (corpus, "other 文字"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_corpus_too_small_for_the_vocabulary_is_reported(caplog):
    tokenizer = train_tokenizer(["abab abab"], vocab_size=1000)
    assert tokenizer.vocab_size < 300
    assert f"the corpus gave {tokenizer.vocab_size} tokens of the 1000 asked for" in caplog.text


def test_training_twice_is_training_once(tmp_path):
    """In processes of their own: hash tables are ordered differently in each."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from text_corpora import MIXED\n"
        "from dacheng.text import train_tokenizer\n"
        "print(*[train_tokenizer(MIXED[:2] + [MIXED[3][:20000]], kind, 600).fingerprint "
        "for kind in ('bpe', 'unigram', 'wordpiece')])"
    )
    here = str(Path(__file__).parent)
    runs = {
        subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(runs) == 1
    assert len(set(runs.pop().split())) == 3


def test_the_order_of_the_texts_does_not_matter():
    for kind in ("bpe", "wordpiece"):
        assert (
            train_tokenizer(MIXED, kind, 600).fingerprint
            == train_tokenizer(MIXED[::-1], kind, 600).fingerprint
            == train_tokenizer(iter(MIXED), kind, 600).fingerprint
        )


def test_further_special_tokens(kind, tmp_path):
    names = ["<|im_start|>", "<|im_end|>", "<tool_call>"]
    tokenizer = train_tokenizer(MIXED[:2], kind, 700, ["<|pad|>", *names])
    assert set(names) < set(tokenizer.special_tokens)
    text = "<|im_start|>user<tool_call>"
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text, allow_special=True)[0] == tokenizer.special_tokens["<|im_start|>"]
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).special_tokens == tokenizer.special_tokens


def test_special_names_in_the_corpus_are_learned_as_text(kind):
    tokenizer = train_tokenizer(["<|endoftext|><|pad|> " * 50], kind, 600)
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("<|endoftext|><|pad|>"))


def test_rare_pairs_are_not_joined():
    assert train_tokenizer(["abc xyz"], vocab_size=300).vocab_size == 258
    assert train_tokenizer(["abc xyz"], vocab_size=300, min_frequency=1).vocab_size == 258 + 4 + 1


def test_long_words_of_wordpiece_stay_cheap_and_whole(trained):
    text = "a" * 30_000
    assert trained["wordpiece"].decode(trained["wordpiece"].encode(text)) == text
    assert trained["wordpiece"].unk_id not in trained["wordpiece"].encode(text)


def test_the_mark_of_a_continuation_is_no_text(trained):
    tokenizer = trained["wordpiece"]
    for text in (CONTINUES, f"{CONTINUES}a", "##", "## title ##ing"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_progress_is_reported(kind):
    seen, size = [], LEAST[kind] + 2
    tokenizer = train_tokenizer(["word " * 60_000] * 5, kind, size, progress=lambda *event: seen.append(event))
    assert seen == [
        ("read", 1_200_000, None),
        ("read", 1_500_000, None),
        ("learn", 0, size),
        ("done", tokenizer.vocab_size, size),
    ]


# --- errors -----------------------------------------------------------------------------------------------------------
def nothing_is_read():
    raise AssertionError("the corpus was read before the settings were checked")
    yield ""


@pytest.mark.parametrize("below", [1, 100, 1000])
def test_a_vocabulary_without_room_for_the_bytes_is_refused(kind, below):
    size = LEAST[kind] - below
    with pytest.raises(UsageError, match="no room") as caught:
        train_tokenizer(nothing_is_read(), kind, size)
    assert (caught.value.field, caught.value.value) == ("vocab_size", size)
    assert caught.value.remedy == f"use at least {LEAST[kind]}"
    with pytest.raises(UsageError, match="no room"):
        train_tokenizer(nothing_is_read(), kind, LEAST[kind], ["<|more|>"])


@pytest.mark.parametrize("texts", [[], [""], ["", ""], iter(())])
def test_an_empty_corpus_is_refused(kind, texts):
    with pytest.raises(UsageError, match="the corpus is empty") as caught:
        train_tokenizer(texts, kind, 1000)
    assert caught.value.field == "texts"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"kind": "morphemes"}, "kind"),
        ({"digits": 0}, "digits"),
        ({"kind": "unigram", "min_frequency": 3}, "min_frequency"),
        ({"special_tokens": "<|a|>"}, "special_tokens"),
        ({"special_tokens": ["<|a|>", "<|a|>"]}, "special_tokens"),
        ({"special_tokens": [""]}, "special_tokens"),
        ({"special_tokens": [7]}, "special_tokens"),
        ({"special_tokens": ["word"]}, "special_tokens"),
        ({"special_tokens": ["###"]}, "special_tokens"),
        ({"special_tokens": ["词"]}, "special_tokens"),
    ],
)
def test_wrong_settings_are_named_before_the_corpus_is_read(options, field):
    with pytest.raises(UsageError) as caught:
        train_tokenizer(nothing_is_read(), **options)
    assert caught.value.field == field


def test_wrong_texts_are_named(kind):
    for texts, problem in (
        (["fine", None], "text 1 is no string"),
        (["fine", "\udc00"], "surrogate"),
        ("abc", "one text"),
    ):
        with pytest.raises(UsageError, match=problem):
            train_tokenizer(texts, kind, 1000)


def test_an_error_in_the_source_of_texts_comes_through(kind):
    def texts():
        yield "fine"
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        train_tokenizer(texts(), kind, 1000)


def test_what_is_saved_names_the_class_that_transformers_looks_for(trained, tmp_path):
    trained["bpe"].save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|pad|>",
    }
