"""Words that lie near in meaning, by an encoder: what people say who do not know the documents' own."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dacheng.rag.questions.rarity import fold
from dacheng.rag.questions.rewording import DOTTED, PLAIN, plain_words

if TYPE_CHECKING:
    from dacheng.rag.dense import Encoder
    from dacheng.rag.passages import Passage

VOCABULARY = 4000  # words that most passages have, among which others are looked for
MAX_PASSAGES = 20_000  # counted
MIN_PASSAGES = 3  # that have a word
NEAR, NEAREST = 0.5, 3  # cosine of a word that may stand for another, and how many may
REPLACED = 0.6  # of the everyday words that have any
_SCOPED = re.compile(
    r"^(?:Which (?:function|method|class) of [\w.]+|Which [\w.]+\.[\w.]+ (?:function|method|class)|"
    r"In [\w.]+, which (?:function|method|class)|"
    r"What is the (?:function|method|class) of [\w.]+ called that) "
)
_OPENINGS = ("What ", "Which function ", "How do I get something that ")


def near_words(encoder: Encoder, questions: Iterable[str], passages: Iterable[Passage]) -> dict[str, list[str]]:
    """For each everyday word of the questions the nearest words of the passages, best first; not its own other forms,
    and none where nothing is near."""
    counted: Counter[str] = Counter()
    for number, passage in enumerate(passages):
        if number >= MAX_PASSAGES:
            break
        counted.update(set(plain_words(passage.text)))
    vocabulary = [word for word, count in counted.most_common(VOCABULARY) if count >= MIN_PASSAGES]
    asked = sorted({word for question in questions for word in plain_words(question)})
    if not vocabulary or not asked:
        return {}
    cosines = encoder.encode(asked) @ encoder.encode(vocabulary).T
    best = cosines.topk(min(4 * NEAREST, len(vocabulary)))
    found = {}
    for word, scores, at in zip(asked, best.values.tolist(), best.indices.tolist(), strict=True):
        near = [vocabulary[i] for score, i in zip(scores, at) if score > NEAR and fold(vocabulary[i]) != fold(word)]
        if near:
            found[word] = near[:NEAREST]
    return found


def in_plain_words(text: str, near: Mapping[str, Sequence[str]], rng: random.Random, *, scoped: bool = False) -> str:
    """The question of somebody who does not know the documents' words: most everyday words become near ones and, unless
    `scoped`, the scope asked in is left out, of other dotted names half of the time."""

    def other(match: re.Match[str]) -> str:
        choices = near.get(match[0])
        return rng.choice(choices) if choices and rng.random() < REPLACED else match[0]

    text = PLAIN.sub(other, text)
    if scoped:
        return text
    text = _SCOPED.sub(lambda match: rng.choice(_OPENINGS), text)
    return DOTTED.sub(lambda match: match[1] if rng.random() < 0.5 else match[0], text)
