"""Conversations to train an adapter on: a question, its sources, a reply that copies the answering sentence and cites.

Form and copying can be learnt in minutes; abstention cannot (a probe: 0 of 16 after 160 examples), so questions without
an answer are left to the gate and counted. A reply is the whole sentence that answers, after the name of what it is
about: replies of a word or two make a small model guess names (docs/lab-notes/finetuning.md, recipes A to E).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dacheng.rag.citations import SIGNATURE, best_sentences, citing
from dacheng.rag.prompting import SOURCE_TOKENS, Count, messages, source_texts
from dacheng.rag.questions import Question
from dacheng.rag.questions.hand import holds
from dacheng.rag.retrieve import Hit
from dacheng.rag.sentences import sentences
from dacheng.records import Drops, Record

if TYPE_CHECKING:
    from dacheng.rag.passages import Passage
    from dacheng.rag.retrieve import Retriever

_NEGATIVES = 5  # passages looked at for distractors


def teaching_records(
    questions: Iterable[Question],
    retriever: Retriever,
    *,
    shown: Sequence[int] = (1, 1, 2),
    tokens: int = SOURCE_TOKENS,
    count: Count | None = None,
    seed: int = 0,
    drops: Drops | None = None,
) -> list[Record]:
    """One conversation a question: system, user (dacheng.rag.prompting: the very prompt of answering), assistant.

    The passage that holds the answer is among the sources at a random place; the others are what retrieval finds near
    it that holds no accepted answer. shown: numbers of sources, one drawn for each passage: questions on one passage
    have the same sources, so that their conversations begin alike and cost their beginning once
    (AdaptTrainConfig.share_beginnings). At most as many replies copy what stands first in their source as copy what
    stands further down: a model that has only seen the first learns to copy the first sentence whatever is asked.
    Dropped and counted: left_to_the_gate (no answer), passage_gone, answer_cut_off (not in what fits into the prompt),
    reply_out_of_form (not what the grammar of citations lets a model say), answer_stands_first. meta marks every record
    synthetic unless a person wrote its question.
    """
    drops, rng = Drops() if drops is None else drops, random.Random(f"{seed}:teaching")
    records: list[Record] = []
    first: list[str] = []  # ids of the records whose reply is what stands first
    drawn: dict[str, list[Passage]] = {}
    for question in questions:
        gold = next((p for p in map(retriever.store.find, question.passages) if p is not None), None)
        if not question.answerable or not question.reply:
            drops.drop("left_to_the_gate" if not question.answerable else "no_reply", example=question.id)
            continue
        if gold is None:
            drops.drop("passage_gone", example=question.id)
            continue
        sources = drawn.get(gold.key)
        if sources is None:
            drawn[gold.key] = sources = _sources(question, gold, retriever, rng.choice(list(shown)), rng)
        elif any(holds(p, answer) for p in sources if p.key not in question.passages for answer in question.answers):
            sources = [gold]  # what distracts from one question answers another
        place = sources.index(gold) + 1
        hits = [Hit(passage, 0.0) for passage in sources]
        texts = source_texts(question.question, hits, shown=len(hits), tokens=tokens, count=count)
        if not _stands_in(question.answers, texts[place - 1]):
            drops.drop("answer_cut_off", example=question.id)
            continue
        reply, stands_first = _reply(question, gold, texts[place - 1])
        content = f"{reply} [{place}]"
        if not re.fullmatch(citing(len(sources)).source, content):
            drops.drop("reply_out_of_form", example=content)
            continue
        chat = messages(question.question, hits, shown=len(hits), tokens=tokens, count=count)
        chat.append({"role": "assistant", "content": content})
        meta = {
            "synthetic": question.synthetic,
            "question": question.id,
            "kind": question.kind,
            "source": question.source,
        }
        records.append(Record(f"teach-{question.id}", messages=chat, meta=meta))
        first += [records[-1].id] if stands_first else []
    return _balanced(records, first, rng, drops)


def _balanced(records: list[Record], first: list[str], rng: random.Random, drops: Drops) -> list[Record]:
    further = len(records) - len(first)
    too_many = set(rng.sample(first, len(first) - further)) if 0 < further < len(first) else set()
    for record in records:
        if record.id in too_many:
            drops.drop("answer_stands_first", example=record.id)
        else:
            drops.keep()
    return [record for record in records if record.id not in too_many]


def _sources(question: Question, gold: Passage, retriever: Retriever, wanted: int, rng: random.Random) -> list[Passage]:
    others = []
    if wanted > 1:
        for hit in retriever.search(question.question, _NEGATIVES):
            key = hit.passage.key
            if key not in question.passages and not any(holds(hit.passage, answer) for answer in question.answers):
                others.append(hit.passage)
    sources = [gold, *others[: wanted - 1]]
    rng.shuffle(sources)
    return sources


def _reply(question: Question, gold: Passage, shown: str) -> tuple[str, bool]:
    """The sentence of what is shown that has the answer, or where the answer is the name of it all, that which tells
    most of what was asked; the question's own reply where no sentence has it. Code has its name before it. And whether
    that sentence is the first there is."""
    name = f"{gold.heading}: " if gold.kind == "code" and gold.heading else ""
    body = shown.split("\n", 1)[1] if "\n" in shown else shown
    said = [s.text for s in sentences(body) if not s.is_example and _tells(s.text)]
    if name and _stands_in(question.answers, gold.heading):
        holding = said
    else:
        holding = [sentence for sentence in said if _stands_in(question.answers, sentence)]
    best = best_sentences(replace(gold, text="\n\n".join(holding)), question.question, limit=1) if holding else []
    if not best:
        return f"{name}{question.reply}", False
    return f"{name}{best[0].rstrip('.')}.", best[0] == said[0]


def _tells(sentence: str) -> bool:
    return not SIGNATURE.match(sentence) and len(sentence.split()) >= 3


def _stands_in(answers: Sequence[str], text: str) -> bool:
    said = " ".join(text.split()).casefold()
    return any(" ".join(answer.split()).casefold() in said for answer in answers)
