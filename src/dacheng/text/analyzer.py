"""Text to search terms: English words and identifiers, Chinese bigrams. No dictionary, no model.

One analyzer for everything that compares texts by their words: retrieval, near-duplicates, overlap of answers. Chinese
bigrams find as well as a segmenter with a dictionary does (docs/lab-notes), where splitting at spaces finds nothing.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

VERSION = f"2/{unicodedata.unidata_version}"
"""Changes with what `analyze` returns: an index made under another version is made again."""

# Scripts written without spaces: Han, Hiragana, Katakana. Their runs become overlapping bigrams.
UNSPACED = (
    "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
)
# Marks that combine with the letter before them: `re` counts them as no part of a word.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u0900-\u0903\u093a-\u094f"
    "\u0981-\u0983\u09bc-\u09cd\u0b82-\u0bcd\u0e31-\u0e4e\u0eb1-\u0ecd\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff"
    "\ufe20-\ufe2f"
)
_ASCII_WORD = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_LETTER = rf"(?:[^\W{UNSPACED}]|[{_MARKS}])"
_RUN = re.compile(rf"([{UNSPACED}]+)|{_LETTER}+(?:\.{_LETTER}+)*")
_SUFFIX = re.compile(r"(?=[a-z]*?[aeiouy][a-z]*(?:ing|ed)$)([a-z]{3,})(?:ing|ed)")  # after three letters with a vowel
_JOINT = re.compile(r"[_.]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def analyze(text: str) -> list[str]:
    """The terms of a text in their order, compatibility forms unified (NFKC) and case folded.

    Words are runs of letters and digits. An identifier comes whole and then in parts, split at "_", "." and camelCase:
    `os.path.isDir` gives os.path.isdir, os, path, is, dir. Runs of Han (or kana) come as overlapping bigrams, a lone
    character as itself. English words come without their endings (see `stem`). No term holds a space, or ASCII
    punctuation other than "_" and ".".
    """
    if text.isascii():
        terms: list[str] = []
        for word in _ASCII_WORD.findall(text):
            terms += _word_terms(word)
        return terms
    terms = []
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text)):
        run = match.group(1)
        if run is None:
            terms += _word_terms(match.group())
        elif len(run) == 1:
            terms.append(run)
        else:
            terms += [run[i : i + 2] for i in range(len(run) - 1)]
    return terms


def analyze_query(text: str) -> list[str]:
    """The distinct terms of a question, without stop words unless it has nothing else."""
    terms = list(dict.fromkeys(analyze(text)))
    return [term for term in terms if term not in STOP_WORDS] or terms


@lru_cache(1 << 16)
def _word_terms(word: str) -> tuple[str, ...]:
    parts = [part for part in _JOINT.split(word) if part]
    if not parts:
        return ()
    whole = _fold(word)
    return (whole,) if len(parts) == 1 and parts[0] == word else (whole, *map(_fold, parts))


def _fold(word: str) -> str:
    if word.isascii():
        return stem(word.lower())
    return unicodedata.normalize("NFKC", word.casefold())


def stem(word: str) -> str:
    """A lower-case English word without plural, -ing, -ed and final e, so that changes, changed and changing are one.

    Light on purpose: nDCG@10 rises by .006 on XQuAD (en) and on SciFact; identifiers as wholes stay as they are.
    """
    before = ""
    while word != before and len(word) > 3 and word.isalpha():
        before = word
        if word.endswith("ies") and len(word) > 4:
            word = word[:-3] + "y"
        elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
            word = word[:-1]
        match = _SUFFIX.fullmatch(word)
        if match:
            word = match.group(1)
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
        if word.endswith("e") and not word.endswith("ee") and len(word) > 4:
            word = word[:-1]
    return word


# What a question is made of and a passage is not chosen by.
STOP_WORDS = frozenset(map(stem, [
    "a", "an", "the", "of", "to", "in", "is", "are", "do", "does", "did", "i", "it", "its", "for", "on", "and", "or",
    "which", "what", "how", "when", "where", "who", "whom", "whose", "why", "by", "with", "from", "that", "this",
    "these", "those", "be", "as", "at", "not", "no", "if", "me", "my", "can", "you", "was", "were", "there", "into",
    "has", "have", "had", "will", "would",
]))  # fmt: skip
