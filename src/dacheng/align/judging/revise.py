"""Critique and revision (Constitutional AI, arXiv 2212.08073, section 3): data for SFT, and pairs, from a model's own
second thoughts. A draft, then for each of a few principles what is wrong with it and the text written again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dacheng.align.judging.asking import Asker, Messages
from dacheng.align.judging.constitution import PRINCIPLES, Principle
from dacheng.errors import UsageError
from dacheng.records import Drops


@dataclass(slots=True)
class Revision:
    """One prompt's way: drafts[0] is what the model said first, drafts[-1] the last revision; critiques[i] and
    principles[i] led from drafts[i] to drafts[i + 1]."""

    prompt: Messages
    drafts: list[str]
    critiques: list[str] = field(default_factory=list)
    principles: list[str] = field(default_factory=list)

    def sft_record(self) -> dict[str, Any]:
        """{"messages", "meta"}: the prompt with the last revision, as data.chats reads it."""
        reply = {"role": "assistant", "content": self.drafts[-1]}
        return {"messages": [*self.prompt, reply], "meta": {"principles": self.principles}}

    def pair_record(self) -> dict[str, Any]:
        """{"prompt", "chosen", "rejected", "meta"}: the last revision over the first draft, as data.preferences reads
        it."""
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (self.drafts[-1], self.drafts[0]))
        return {"prompt": self.prompt, "chosen": chosen, "rejected": rejected, "meta": {"principles": self.principles}}


def revise(
    asker: Asker,
    prompts: Sequence[Messages],
    *,
    drafts: Sequence[str] | None = None,
    principles: Sequence[Principle] = PRINCIPLES,
    rounds: int = 1,
    seed: int = 0,
) -> tuple[list[Revision], Drops]:
    """Each prompt through draft, critique and revision, `rounds` times, by a principle drawn for each anew (a function
    of seed, the prompt's number and the round). drafts: first responses that are there already.

    Dropped, with their reason counted: prompts whose draft, critique or revision came back empty, and those that the
    revision left as they were (they teach nothing). Raises UsageError for drafts that are not one a prompt.
    """
    if (drafts is not None and len(drafts) != len(prompts)) or not principles or rounds < 1:
        raise UsageError(
            "one draft a prompt, at least one principle and one round", field="drafts",
            value=[len(prompts), None if drafts is None else len(drafts), len(principles), rounds],
        )  # fmt: skip
    drops = Drops()
    first = list(drafts) if drafts is not None else asker.ask(list(prompts))
    going = {n: Revision(list(prompt), [draft]) for n, (prompt, draft) in enumerate(zip(prompts, first))}
    _drop(going, drops, "empty_draft", lambda one: not one.drafts[-1].strip())
    for turn in range(rounds):
        drawn = {number: random.Random(f"{seed}:{number}:{turn}").choice(principles) for number in going}
        said = asker.ask([_critique(one, drawn[number]) for number, one in going.items()])
        for (number, one), critique in zip(going.items(), said):
            one.critiques.append(critique)
            one.principles.append(drawn[number].name)
        _drop(going, drops, "empty_critique", lambda one: not one.critiques[-1].strip())
        said = asker.ask([_revision(one, drawn[number]) for number, one in going.items()])
        for one, revision in zip(going.values(), said):
            one.drafts.append(revision)
        _drop(going, drops, "empty_revision", lambda one: not one.drafts[-1].strip())
    _drop(going, drops, "nothing_revised", lambda one: one.drafts[-1].split() == one.drafts[0].split())
    for one in going.values():
        drops.keep(len(one.drafts[-1].encode()))
    return list(going.values()), drops


def _drop(going: dict[int, Revision], drops: Drops, reason: str, which: Callable[[Revision], bool]) -> None:
    for number in [number for number, one in going.items() if which(one)]:
        text = going.pop(number).drafts[-1]
        drops.drop(reason, len(text.encode()), f"prompt {number}")


def _critique(one: Revision, principle: Principle) -> Messages:
    return [
        *one.prompt,
        {"role": "assistant", "content": one.drafts[-1]},
        {"role": "user", "content": principle.critique},
    ]


def _revision(one: Revision, principle: Principle) -> Messages:
    asked = _critique(one, principle)
    request = f"{principle.revision} Give the new response alone."
    return [*asked, {"role": "assistant", "content": one.critiques[-1]}, {"role": "user", "content": request}]
