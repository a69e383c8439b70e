"""Which language a text is in, by its script: enough to choose how it is split and by which model it is answered."""

from __future__ import annotations

import re

from dacheng.rag.passages import Language

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_KANA = re.compile("[\u3041-\u30ff]+")
_LATIN = re.compile("[A-Za-z]+")
_LETTER = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> Language:
    """ "zh" where at least 3 letters in 10 are Han and kana are rare, "en" where at least 8 in 10 are Latin (a page of
    English with some Chinese names stays English; Latin script is taken for English), else "other"."""
    if text.isascii():
        return "en" if _LATIN.search(text) else "other"
    letters = _count(_LETTER, text)
    if not letters:
        return "other"
    han, kana = _count(_HAN, text), _count(_KANA, text)
    if han >= 0.3 * letters and kana * 10 < han:
        return "zh"
    return "en" if _count(_LATIN, text) >= 0.8 * letters else "other"


def han_count(text: str) -> int:
    """Characters of Han script."""
    return 0 if text.isascii() else _count(_HAN, text)


def _count(runs: re.Pattern[str], text: str) -> int:
    return sum(map(len, runs.findall(text)))
