"""Training a tokenizer on a corpus, with the tokenizers library: byte-level BPE, Unigram or WordPiece.

All three work on bytes (GPT-2's printable stand-ins for them), so any text comes back as it was; none has an unknown
token in use. They share the pre-tokens, and each is deterministic: one corpus, one tokenizer, in any order of threads.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from dacheng.errors import UsageError
from dacheng.text.byte_bpe import BYTE_TO_CHAR, utf8
from dacheng.text.tokenizer import Tokenizer

Kind = Literal["bpe", "unigram", "wordpiece"]
Progress = Callable[[str, int, int | None], None]

END_OF_TEXT, PAD, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unk|>"
# Says that a WordPiece continues the one before. BERT's "##" can itself be text; this character is no byte's stand-in.
CONTINUES = "⁀"
_WORDPIECE_WORD = 100  # WordPiece tries every end of a word from every start: cubic, so words have a limit (BERT's)
_PROGRESS_BYTES = 1 << 20
_ALPHABET = list(BYTE_TO_CHAR.values())


def split_pattern(digits: int = 2) -> str:
    """Pre-tokens in the manner of GPT-4 (openai/tiktoken, tiktoken_ext/openai_public.py, cl100k_base).

    A word takes one character before it (a space, a bracket); \\p{M} keeps a letter's marks with it (decomposed
    accents, the vowels of Indic scripts), as GPT-4o does. Numbers are cut into groups of `digits`: two waste the fewest
    tokens at 32k (nanochat, tokenizer.py; GPT-4 has three, Llama 2 one).
    """
    return (
        r"'(?i:[sdmt]|ll|ve|re)"
        r"|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+"
        rf"|\p{{N}}{{1,{digits}}}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def pre_tokenizer(digits: int = 2, isolate_han: bool = True) -> pre_tokenizers.Sequence:
    """Han runs, then `split_pattern`, then bytes.

    isolate_han: a run of Chinese characters is a pre-token of its own. Chinese has no spaces, so \\p{L}+ would take it
    together with the Latin letters, and the bracket or space, next to it.
    """
    steps: list[Any] = [pre_tokenizers.Split(Regex(r"\p{Han}+"), "isolated")] if isolate_han else []
    steps += [
        pre_tokenizers.Split(Regex(split_pattern(digits)), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(steps)


def train_tokenizer(
    texts: Iterable[str],
    kind: Kind = "bpe",
    vocab_size: int = 8192,
    special_tokens: Sequence[str] = (),
    *,
    digits: int = 2,
    isolate_han: bool = True,
    split: str | None = None,
    min_frequency: int | None = None,
    progress: Progress | None = None,
) -> Tokenizer:
    """Learns a vocabulary of `vocab_size` tokens, special tokens included, from `texts`, which are read once.

    special_tokens: beside <|endoftext|> and <|pad|>, which have the ids 0 and 1. digits: the longest group of digits in
    a token, 1 to 3. isolate_han: see `pre_tokenizer`. split: instead of both, the pre-tokens of a family by its name in
    `vocabularies.splits` ("deepseek-v3" isolates Han and digits, too), for BPE: models can then be exported to GGUF,
    since llama.cpp knows how to cut. min_frequency: BPE and WordPiece join no pair that is rarer (2
    unless given). progress(stage, done, total) is called with "read" and the bytes so far (total None) about every
    megabyte, then with "learn", 0 and vocab_size, and at the end with "done" and the size reached.

    A corpus with too few different words gives a smaller vocabulary; that is logged as a warning.
    Raises UsageError when the vocabulary has no room for the bytes and special tokens, the corpus is empty, a text is
    no string, or a special token could also be an ordinary word.

    Sources: Sennrich et al. 2016 (BPE), Kudo 2018, arXiv:1804.10959 (Unigram), Schuster and Nakajima 2012 (WordPiece;
    here pairs are joined by count, as in BPE, and texts are encoded by longest match).
    """
    if kind not in ("bpe", "unigram", "wordpiece"):
        raise UsageError("no such kind of tokenizer", field="kind", value=kind, remedy="use bpe, unigram or wordpiece")
    if digits not in (1, 2, 3):
        raise UsageError("digits are grouped by 1, 2 or 3", field="digits", value=digits, remedy="leave it at 2")
    if kind == "unigram" and min_frequency is not None:
        raise UsageError("Unigram has no pairs", field="min_frequency", value=min_frequency, remedy="leave it out")
    pre = pre_tokenizer(digits, isolate_han) if split is None else _foreign_split(split, kind, digits, isolate_han)
    names = [END_OF_TEXT, PAD, *([UNKNOWN] if kind == "wordpiece" else [])]
    names += [name for name in special_tokens if name not in names]
    _check_special(special_tokens, pre)
    _check_size(kind, vocab_size, len(names))
    train = {"bpe": _train_bpe, "unigram": _train_unigram, "wordpiece": _train_wordpiece}[kind]
    corpus = _Corpus(texts, vocab_size, progress)
    core = train(corpus, pre, vocab_size, names, 2 if min_frequency is None else min_frequency)
    core.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    tokenizer = Tokenizer(
        core,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        unk_token=UNKNOWN if kind == "wordpiece" else None,
        config=config,
    )
    if tokenizer.vocab_size < vocab_size:
        logging.getLogger(__name__).warning(
            "the corpus gave %d tokens of the %d asked for", tokenizer.vocab_size, vocab_size
        )
    if progress is not None:
        progress("done", tokenizer.vocab_size, vocab_size)
    return tokenizer


def _foreign_split(name: str, kind: Kind, digits: int, isolate_han: bool) -> Any:
    from dacheng.text.vocabularies.splits import split_named

    found = split_named(name)
    if kind != "bpe" or found.nfc or found.bos:
        why = "only BPE is split so" if kind != "bpe" else "this split changes the text, or begins it with BOS"
        raise UsageError(why, field="split", value=name, remedy="use deepseek-v3, gpt-2, smollm or gpt-4o, with bpe")
    if digits != 2 or not isolate_han:
        raise UsageError("a named split says itself how digits and Han are cut", field="split", value=name,
                         remedy="leave out digits and isolate_han")  # fmt: skip
    return found.pre_tokenizer()


def _check_size(kind: Kind, vocab_size: int, specials: int) -> None:
    least = specials + 256 * (2 if kind == "wordpiece" else 1)
    if vocab_size < least:
        what = "the bytes, each also as a continuation" if kind == "wordpiece" else "the 256 bytes"
        raise UsageError(
            f"the vocabulary has no room for {what}, and {specials} special tokens",
            field="vocab_size", value=vocab_size, remedy=f"use at least {least}",
        )  # fmt: skip


def _check_special(names: Sequence[str], pre: pre_tokenizers.PreTokenizer) -> None:
    """Raises UsageError for a name that may also be learned as an ordinary token: text would then get its id."""
    if isinstance(names, str):
        raise UsageError("expected a list of names", field="special_tokens", value=names, remedy="write [NAME]")
    for name in names:
        if not isinstance(name, str) or not name or names.count(name) > 1:
            raise UsageError(
                "special tokens are different, non-empty strings",
                field="special_tokens", value=name, remedy="name each once",
            )  # fmt: skip
        if len(pre.pre_tokenize_str(name)) == 1:
            raise UsageError(
                "this special token could be an ordinary word of the corpus",
                field="special_tokens", value=name, remedy=f"write it as <|{name.strip('<|>')}|>",
            )  # fmt: skip


class _Corpus:
    """The texts on their way to the trainer: checked, counted and reported."""

    def __init__(self, texts: Iterable[str], vocab_size: int, progress: Progress | None) -> None:
        if isinstance(texts, str):
            raise UsageError("expected texts, not one text", field="texts", value=texts, remedy="write [TEXT]")
        self._texts, self._vocab_size, self._progress = texts, vocab_size, progress

    def __iter__(self) -> Iterator[str]:
        size = reported = 0
        for i, text in enumerate(self._texts):
            if not isinstance(text, str):
                raise UsageError(f"text {i} is no string", field="texts", value=text, remedy="leave out such records")
            size += len(utf8(text))
            yield text
            if self._progress is not None and size - reported >= _PROGRESS_BYTES:
                self._progress("read", size, None)
                reported = size
        if not size:
            raise UsageError("the corpus is empty", field="texts", value="", remedy="give texts to learn from")
        if self._progress is not None:
            self._progress("read", size, None)
            self._progress("learn", 0, self._vocab_size)


def _core(model: models.Model, pre: pre_tokenizers.PreTokenizer, decoder: decoders.Decoder) -> Core:
    core = Core(model)
    core.pre_tokenizer, core.decoder = pre, decoder
    return core


def _train_bpe(corpus: _Corpus, pre: Any, vocab_size: int, names: list[str], min_frequency: int) -> Core:
    core = _core(models.BPE(), pre, decoders.ByteLevel())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=names, initial_alphabet=_ALPHABET, min_frequency=min_frequency,
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(corpus, trainer)
    return core


def _train_unigram(corpus: _Corpus, pre: Any, vocab_size: int, names: list[str], min_frequency: int) -> Core:
    """Two things in the library's result change from run to run with the order of a hash table, and are made fixed
    here: the last digits of the scores (sums of floats), and the scores of bytes that the corpus hardly has, which it
    spaces 1e-4 apart above the lowest. At its smallest size it also keeps more pieces than asked for."""
    learned = _core(models.Unigram(), pre, decoders.ByteLevel())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=names, initial_alphabet=_ALPHABET, show_progress=False
    )
    learned.train_from_iterator(corpus, trainer)
    pieces = {piece: score for piece, score in json.loads(learned.to_str())["model"]["vocab"] if piece not in names}
    lowest = min((score for score in pieces.values() if score is not None), default=0.0)
    for piece, score in pieces.items():  # no score: NaN, from a corpus of a character or two
        if score is None or (len(piece) == 1 and score <= lowest + 256 * 1e-4):
            pieces[piece] = lowest
    ranked = sorted(((round(score, 6), piece) for piece, score in pieces.items()), key=lambda e: (-e[0], e[1]))
    longer = [entry for entry in ranked if len(entry[1]) > 1][: vocab_size - len(names) - 256]
    kept = {piece for _, piece in longer} | set(_ALPHABET)
    vocab = [(name, 0.0) for name in names] + [(piece, score) for score, piece in ranked if piece in kept]
    return _core(models.Unigram(vocab, unk_id=None, byte_fallback=False), pre, decoders.ByteLevel())


def _train_wordpiece(corpus: _Corpus, pre: Any, vocab_size: int, names: list[str], min_frequency: int) -> Core:
    """Continuations of all bytes are given to the trainer as if special: it would number them in the order of a hash
    table, and leave out those that the corpus lacks."""
    short = pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{_WORDPIECE_WORD}}}"), "isolated")
    pre = pre_tokenizers.Sequence([pre, short])
    learned = _core(models.WordPiece(unk_token=UNKNOWN), pre, decoders.ByteLevel())
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=names + [CONTINUES + char for char in _ALPHABET],
        initial_alphabet=_ALPHABET, continuing_subword_prefix=CONTINUES, min_frequency=min_frequency,
        show_progress=False,
    )  # fmt: skip
    learned.train_from_iterator(corpus, trainer)
    vocab = json.loads(learned.to_str())["model"]["vocab"]
    model = models.WordPiece(
        vocab, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUES, max_input_chars_per_word=_WORDPIECE_WORD
    )
    return _core(model, pre, decoders.Sequence([decoders.Replace(CONTINUES, ""), decoders.ByteLevel()]))
