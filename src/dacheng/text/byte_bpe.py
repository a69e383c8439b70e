"""Byte-level byte-pair encoding in one file: the lesson, and the oracle for the tokenizers library.

Sennrich, Haddow and Birch 2016 (arXiv:1508.07909, algorithm 1), over UTF-8 bytes as in GPT-2 (Radford et al. 2019,
section 2.2). The whole idea:

1. *Split* the text into pre-tokens (words with their leading space, numbers, punctuation). No merge crosses them.
2. *Train*: every pre-token starts as its bytes. Count adjacent pairs, join the most frequent pair everywhere, repeat.
   The list of joins ("merges"), in order, is the model.
3. *Encode*: start from the bytes again and replay the merges that apply, the earliest learned first.
4. *Decode*: put the bytes of the tokens side by side.

The library (`dacheng.text.Tokenizer`) does this in Rust and reads many other formats; use it for work. This file is
for reading, for checking, and for counting pairs by hand.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from dacheng.errors import DamagedFile, UsageError

Splitter = Callable[[str], Sequence[str]]
Ties = Literal["ids", "bytes"]

# Words up to this many bytes are remembered with their ids; natural text repeats its words, base64 does not.
_CACHED_WORD = 64


# --- bytes that can be printed ----------------------------------------------------------------------------------------
def _printable_bytes() -> dict[int, str]:
    """One visible character for each byte, so that a vocabulary can be stored as JSON and read by a person.

    GPT-2's table (openai/gpt-2, src/encoder.py, bytes_to_unicode): bytes that are visible in Latin-1 stand for
    themselves, the other 68 take the code points from 256 on. A space becomes "Ġ", a newline "Ċ".
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return dict(sorted(table.items(), key=lambda item: item[1]))


BYTE_TO_CHAR = _printable_bytes()  # in the order of the characters: the order in which byte tokens get their ids
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}


def utf8(text: str) -> bytes:
    """The bytes of `text`. Raises UsageError on half a surrogate pair, which str can hold and Unicode text cannot."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            "the text has half a surrogate pair, which is no character",
            field="text", value=text[max(0, error.start - 20) : error.end + 20],
            remedy="decode its bytes with errors='replace', or join the two halves of the pair",
        ) from None  # fmt: skip


def to_printable(token: bytes) -> str:
    """b" the" -> Ġthe."""
    return "".join(BYTE_TO_CHAR[byte] for byte in token)


def from_printable(token: str) -> bytes:
    """Ġthe -> b" the". Raises KeyError on a character that stands for no byte."""
    return bytes(CHAR_TO_BYTE[char] for char in token)


# --- 1. split ---------------------------------------------------------------------------------------------------------
class _CharacterClasses(dict[int, str]):
    """For str.translate: letters become "a", numbers "0", white space a tab, the rest "!". What the pattern names
    literally stays: the space, the apostrophe and the letters of 's, 't, 're, 've, 'm, 'll and 'd.

    Python's `re` has no \\p{L}: on these classes a plain pattern does the same. They are as current as Python's Unicode
    tables; a code point that was assigned later counts as "the rest".
    """

    # Unicode's White_Space. str.isspace also takes U+001C to U+001F, which are "the rest" in GPT-2's pattern.
    _spaces = set("\t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | set(map(chr, range(0x2000, 0x200B)))

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)[0]
        if char in " 'delmrstv":
            found = char
        elif char in self._spaces:
            found = "\t"
        else:
            found = {"L": "a", "N": "0"}.get(category, "!")
        self[code] = found
        return found


_CLASSES = _CharacterClasses()

# openai/gpt-2, src/encoder.py: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
# The last but one leaves the last space of a run to the word behind it.
_GPT2_PATTERN = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[a-z]+| ?0+| ?[!']+|[ \t]+(?![^ \t])|[ \t]+")


def gpt2_split(text: str) -> list[str]:
    """GPT-2's pre-tokens; joined they are `text`. "He's 42!" -> ["He", "'s", " 42", "!"]."""
    pieces, start = [], 0
    for classes in _GPT2_PATTERN.findall(text.translate(_CLASSES)):
        end = start + len(classes)
        pieces.append(text[start:end])
        start = end
    return pieces


def pattern_split(pattern: str) -> Splitter:
    """A splitter for any pattern in the syntax of tokenizer.json (Oniguruma: \\p{L}, \\p{Han}…), by the tokenizers
    library. What the pattern does not match becomes pre-tokens of its own."""
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return lambda text: [piece for piece, _ in split.pre_tokenize_str(text)]


def _between(text: str, special_tokens: Iterable[str]) -> list[str]:
    """`text` cut around every special token: plain text at even places, special tokens at odd ones. Longest first."""
    names = sorted(special_tokens, key=len, reverse=True)
    return re.split("(" + "|".join(map(re.escape, names)) + ")", text) if names else [text]


# --- 2. train ---------------------------------------------------------------------------------------------------------
def train_byte_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    split: Splitter = gpt2_split,
    ties: Ties = "ids",
    min_frequency: int = 1,
) -> ByteBPE:
    """Learns merges until the vocabulary has `vocab_size` tokens, or no pair occurs `min_frequency` times.

    Ids: special tokens in the order given, the 256 bytes in the order of their printable characters, then merges.
    Special tokens in the texts are boundaries: they are not counted and nothing is merged across them.

    ties: which of two equally frequent pairs is merged first. "ids": the one with the smaller left id, then the smaller
    right id, as the tokenizers library does (models/bpe/trainer.rs). "bytes": the one with the greatest bytes, left
    then right, as in Stanford CS336, assignment 1.

    Raises UsageError when vocab_size has no room for the bytes and the special tokens, or a special token is doubled.
    """
    least = 256 + len(special_tokens)
    if vocab_size < least:
        raise UsageError(
            "the vocabulary is smaller than the bytes and the special tokens",
            field="vocab_size", value=vocab_size, remedy=f"use at least {least}",
        )  # fmt: skip
    if len(set(special_tokens)) != len(special_tokens) or "" in special_tokens:
        raise UsageError(
            "special tokens must be different and not empty",
            field="special_tokens", value=list(special_tokens), remedy="name each once",
        )  # fmt: skip
    counts: Counter[str] = Counter()
    for text in texts:
        for part in _between(text, special_tokens)[::2]:
            counts.update(split(part))
    specials = {name: i for i, name in enumerate(special_tokens)}
    tokens = [bytes([byte]) for byte in BYTE_TO_CHAR]
    merges = _learn(counts, tokens, len(specials), vocab_size, ties, min_frequency)
    vocab = {token: len(specials) + i for i, token in enumerate(tokens)}
    return ByteBPE(vocab, merges, special_tokens=specials, split=split)


def _learn(
    counts: Mapping[str, int], tokens: list[bytes], offset: int, vocab_size: int, ties: Ties, min_frequency: int
) -> list[tuple[bytes, bytes]]:
    """The merges, in order. Appends each new token to `tokens` (token i has the id offset + i).

    A word is held as a string with one character per token, chr(id): a pair is then a substring, and merging is
    splitting there and joining anew. Counting all pairs again after every merge would be right and slow. Two things
    make it fast: `where` remembers which words contain a pair, so that a merge visits only those; and a heap yields the
    most frequent pair. Counts of pairs in the heap only ever fall (a pair can only become more frequent while its newer
    half is being made), so an outdated entry is too high: when it comes up, it is put back with the true count.

    The same bytes are never learned twice. No merge has crossed the ends of a token that exists, so what happened
    inside depends on its bytes alone: every occurrence was built by the same merges.
    """
    char_of_byte = {token[0]: chr(offset + i) for i, token in enumerate(tokens)}
    words = ["".join([char_of_byte[byte] for byte in utf8(word)]) for word in counts]
    frequency = list(counts.values())
    pair_counts: Counter[str] = Counter()
    where: defaultdict[str, set[int]] = defaultdict(set)
    for i, word in enumerate(words):
        for left, right in itertools.pairwise(word):
            pair_counts[left + right] += frequency[i]
            where[left + right].add(i)

    def entry(pair: str) -> tuple[int, object, str]:  # the heap's smallest is merged next; strings compare id by id
        key = pair if ties == "ids" else [_descending(tokens[ord(half) - offset]) for half in pair]
        return -pair_counts[pair], key, pair

    heap = [entry(pair) for pair in pair_counts]
    heapq.heapify(heap)
    merges: list[tuple[bytes, bytes]] = []
    while heap and offset + len(tokens) < vocab_size:
        negative, _, pair = heapq.heappop(heap)
        if -negative != pair_counts[pair]:
            heapq.heappush(heap, entry(pair))
            continue
        if -negative < max(min_frequency, 1):
            break
        first, second = (tokens[ord(half) - offset] for half in pair)
        merges.append((first, second))
        new = chr(offset + len(tokens))
        tokens.append(first + second)
        made: set[str] = set()
        for i in where.pop(pair):
            words[i], changes = merge_pair(words[i], pair, new)
            for changed, change in changes:
                pair_counts[changed] += change * frequency[i]
                if change > 0:
                    where[changed].add(i)
                    made.add(changed)
        del pair_counts[pair]
        for other in made:
            heapq.heappush(heap, entry(other))
    return merges


def merge_pair(word: str, pair: str, new: str) -> tuple[str, list[tuple[str, int]]]:
    """Replaces `pair` by `new` from left to right. Returns the word and the changes to the counts of other pairs.

    merge_pair("xaby", "ab", "Z") -> "xZy", [("xa", -1), ("xZ", +1), ("by", -1), ("Zy", +1)]
    """
    parts = word.split(pair)
    changes: list[tuple[str, int]] = []
    last = len(parts) - 1
    for i in range(last):
        before = parts[i][-1:] or (new if i else "")  # the pair may follow itself, and was already replaced there
        after = parts[i + 1][:1] or (pair[0] if i + 1 < last else "")
        if before:
            changes += [(before + pair[0], -1), (before + new, 1)]
        if after:
            changes += [(pair[1] + after, -1), (new + after, 1)]
    return new.join(parts), changes


def _descending(token: bytes) -> str:
    """A key that sorts before another's when `token` is the greater: each byte turned over, and an end mark above all
    of them, because of two tokens of which one begins the other the longer is the greater."""
    return "".join(chr(255 - byte) for byte in token) + "\u0100"


# --- 3. encode, 4. decode ---------------------------------------------------------------------------------------------
class ByteBPE:
    """A trained byte-level BPE: `vocab` maps the bytes of a token to its id, `merges` lists pairs in order of rank."""

    def __init__(
        self,
        vocab: Mapping[bytes, int],
        merges: Sequence[tuple[bytes, bytes]],
        *,
        special_tokens: Mapping[str, int],
        split: Splitter = gpt2_split,
    ) -> None:
        """Raises DamagedFile when a byte, a merge's halves or its result has no id, or two tokens have the same."""
        self.vocab, self.merges, self.special_tokens = dict(vocab), list(merges), dict(special_tokens)
        self._split = split
        try:
            self._byte_ids = [self.vocab[bytes([byte])] for byte in range(256)]
            self._ranks = {(self.vocab[a], self.vocab[b]): rank for rank, (a, b) in enumerate(self.merges)}
            self._merged = [self.vocab[a + b] for a, b in self.merges]  # rank -> id of the result
        except KeyError as error:
            raise DamagedFile(
                "the vocabulary lacks a byte or a part of a merge",
                field="vocab", value=error.args[0], remedy="take vocab and merges from the same model",
            ) from None  # fmt: skip
        self._bytes = {i: token for token, i in self.vocab.items()}
        self._bytes |= {i: name.encode("utf-8") for name, i in self.special_tokens.items()}
        if len(self._bytes) != len(self.vocab) + len(self.special_tokens):
            raise DamagedFile("two tokens share one id", field="vocab", remedy="give each token an id of its own")
        self._cached = functools.lru_cache(1 << 16)(self._merge)

    @property
    def vocab_size(self) -> int:
        return max(self._bytes) + 1

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids. A special token's name in the text is ordinary text unless `allow_special`."""
        ids: list[int] = []
        for i, part in enumerate(_between(text, self.special_tokens if allow_special else ())):
            if i % 2:
                ids.append(self.special_tokens[part])
                continue
            for piece in self._split(part):
                word = utf8(piece)
                ids += self._cached(word) if len(word) <= _CACHED_WORD else self._merge(word)
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the tokens, special tokens by name. Raises UsageError on an id that is no token."""
        try:
            return b"".join([self._bytes[i] for i in ids])
        except KeyError as error:
            raise UsageError(
                "no token has this id", field="id", value=error.args[0], remedy=f"ids are below {self.vocab_size}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """As text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def _merge(self, word: bytes) -> tuple[int, ...]:
        """Ids of one pre-token: of the merges that apply, always the one learned first, leftmost.

        A linked list and a heap of candidates: n log n for n bytes. Looking through all pairs again after every merge
        is shorter to write and as fast for words, but takes hours for a megabyte of one letter.
        """
        ids = [self._byte_ids[byte] for byte in word]
        end, ranks = len(ids), self._ranks
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))
        heap = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(ids)) if pair in ranks]
        heapq.heapify(heap)
        while heap:
            rank, i = heapq.heappop(heap)
            j = after[i]
            if ids[i] < 0 or j >= end or ranks.get((ids[i], ids[j])) != rank:
                continue  # one of the two was merged with another neighbour meanwhile
            ids[i], ids[j] = self._merged[rank], -1
            after[i] = k = after[j]
            if k < end:
                before[k] = i
                if (follows := ranks.get((ids[i], ids[k]))) is not None:
                    heapq.heappush(heap, (follows, i))
            if (h := before[i]) >= 0 and (precedes := ranks.get((ids[h], ids[i]))) is not None:
                heapq.heappush(heap, (precedes, h))
        return tuple(i for i in ids if i >= 0)

    # --- GPT-2's two files --------------------------------------------------------------------------------------------
    def printable(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Vocabulary (special tokens included) and merges as GPT-2's files and the tokenizers library spell them."""
        vocab = dict(self.special_tokens) | {to_printable(token): i for token, i in self.vocab.items()}
        return dict(sorted(vocab.items(), key=lambda item: item[1])), [
            (to_printable(a), to_printable(b)) for a, b in self.merges
        ]

    def save(self, directory: Path | str) -> None:
        """Writes vocab.json and merges.txt."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        vocab, merges = self.printable()
        (directory / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        (directory / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")

    @classmethod
    def load(
        cls,
        directory: Path | str,
        *,
        special_tokens: Sequence[str] = ("<|endoftext|>",),
        split: Splitter = gpt2_split,
    ) -> ByteBPE:
        """Reads vocab.json and merges.txt as `save` or GPT-2 wrote them; `special_tokens` says which of the vocabulary
        are special. Raises DamagedFile naming the directory."""
        directory = Path(directory)
        try:
            printed: dict[str, int] = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
            specials = {name: printed.pop(name) for name in special_tokens}
            vocab = {from_printable(token): i for token, i in printed.items()}
            lines = (directory / "merges.txt").read_text(encoding="utf-8").split("\n")
            pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
            merges = [(from_printable(left), from_printable(right)) for left, right in pairs]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DamagedFile(
                f"cannot read a byte-level BPE: {type(error).__name__}: {error}",
                field="vocab.json, merges.txt", value=str(directory), remedy="copy both files again",
            ) from error  # fmt: skip
        return cls(vocab, merges, special_tokens=specials, split=split)
