"""The conversation that asks a model about sources: the same for training examples, for answering and for the exam."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dacheng.rag.questions.rarity import fold
from dacheng.rag.questions.wording import is_chinese
from dacheng.rag.sentences import one_line, sentences
from dacheng.text.analyzer import analyze, analyze_query

if TYPE_CHECKING:
    from dacheng.rag.retrieve import Hit

SHOWN = 1
"""Sources in a prompt: a model of 135M takes the wrong one of three."""
SOURCE_TOKENS = 160
"""Tokens of all sources of one prompt together: those sentences that have most of the question (see excerpt)."""
SYSTEM_EN = "Answer the question in one short sentence from the sources only. Cite the source as [1]."
SYSTEM_ZH = "只根据资料用一句简短的话回答问题，并用[1]这样的标记注明出处。"
_CHARACTERS_A_TOKEN = 3.5  # of English and code where no tokenizer is at hand; a Han character counts as one token

_EMPTY_LINES = re.compile(r"\n(?:[^\S\n]*\n)+|[\v\f\x1c-\x1e\x85\u2028\u2029]+")

Count = Callable[[str], int]


def messages(
    question: str,
    hits: Sequence[Hit],
    *,
    shown: int = SHOWN,
    tokens: int = SOURCE_TOKENS,
    count: Count | None = None,
) -> list[dict[str, Any]]:
    """The system's and the user's message. The first `shown` hits are the sources [1], [2], …

    Each source is cut to its share of `tokens` as `count` counts them: its first sentence (a signature) and those that
    have most of the question stay. What a document says is between "Sources" and "Question" and nothing else: a source
    has no empty line, so it cannot begin a source or a question of its own, and the names of special tokens in it are
    only text (see ChatRenderer).
    """
    chinese = is_chinese(question)
    said = source_texts(question, hits, shown=shown, tokens=tokens, count=count)
    sources = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(said, 1))
    if chinese:
        body = f"资料：\n{sources}\n\n问题：{question}" if said else f"问题：{question}"
    else:
        body = f"Sources:\n{sources}\n\nQuestion: {question}" if said else f"Question: {question}"
    return [
        {"role": "system", "content": SYSTEM_ZH if chinese else SYSTEM_EN},
        {"role": "user", "content": body},
    ]


def bare_messages(question: str) -> list[dict[str, Any]]:
    """The question without sources: what the model knows by itself."""
    short = "请用一句简短的话回答。" if is_chinese(question) else "Answer in one short sentence."
    return [{"role": "system", "content": short}, {"role": "user", "content": question}]


def source_texts(
    question: str,
    hits: Sequence[Hit],
    *,
    shown: int = SHOWN,
    tokens: int = SOURCE_TOKENS,
    count: Count | None = None,
) -> list[str]:
    """What is shown of each of the first `shown` hits: its heading and an excerpt, in bounds."""
    used = hits[: max(0, shown)]
    count = count or estimated_tokens
    texts = []
    for number, hit in enumerate(used):
        share = tokens // (len(used) - number)  # what a short source leaves goes to those after it
        heading = one_line(hit.passage.heading)[:200]
        text = excerpt(question, _EMPTY_LINES.sub("\n", hit.passage.text), share - count(heading), count)
        tokens -= count(heading) + count(text)
        texts.append(f"{heading}\n{text}")
    return texts


def excerpt(question: str, text: str, tokens: int, count: Count | None = None) -> str:
    """At most `tokens` of `text`: whole if it fits, else its first sentence and those with most terms of the question,
    in their order, with "…" between those that were not neighbours."""
    count = count or estimated_tokens
    if count(text) <= tokens:
        return text.strip()
    said = [sentence.text for sentence in sentences(text)]
    asked = set(map(fold, analyze_query(question)))
    by_worth = sorted(range(len(said)), key=lambda i: (i > 0, -_overlap(said[i], asked), i))
    kept: list[int] = []
    left = tokens
    for at in by_worth:
        cost = count(said[at]) + 1
        if cost <= left:
            kept.append(at)
            left -= cost
    if not kept and said:
        return _cut(said[by_worth[0]], tokens, count)
    parts: list[str] = []
    for before, at in zip([-1, *sorted(kept)], sorted(kept), strict=False):
        parts.append(said[at] if at == before + 1 else f"… {said[at]}")
    return "\n".join(parts)


def estimated_tokens(text: str) -> int:
    """Without a tokenizer: a Han character is one token, of the rest 3.5 characters are."""
    wide = sum(ord(character) > 0x2E7F for character in text)
    return wide + round((len(text) - wide) / _CHARACTERS_A_TOKEN)


def _overlap(sentence: str, asked: set[str]) -> float:
    """Terms of the question in a sentence, a little less for a long one."""
    terms = set(map(fold, analyze(sentence)))
    return len(terms & asked) / (8 + len(terms)) ** 0.5


def _cut(text: str, tokens: int, count: Count) -> str:
    """The longest beginning of `text` that fits, by halving."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[:middle]) <= tokens else (low, middle - 1)
    return text[:low]
