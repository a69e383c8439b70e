"""What training sees of conversations: the rendered text, token by token, and which of it is learnt."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.data.chats import Learn, learnt_mask
from dacheng.errors import DachengError
from dacheng.formats.atomic import replacing_file
from dacheng.records import Drops, Record

if TYPE_CHECKING:
    from dacheng.text import ChatRenderer

_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"  # they reorder what is seen


@dataclass(frozen=True, slots=True)
class ShownToken:
    """text: the characters it covers, "" where the token before has them. special: a control token."""

    id: int
    text: str
    learnt: bool
    special: bool


@dataclass(frozen=True, slots=True)
class ShownExample:
    """A conversation as it is trained on. dropped: why it is not, else None; then there may be no tokens."""

    id: str
    tokens: list[ShownToken]
    notes: list[str] = field(default_factory=list)
    dropped: str | None = None

    @property
    def learnt(self) -> int:
        return sum(token.learnt for token in self.tokens)

    def pieces(self) -> list[tuple[str, bool, bool]]:
        """(text, learnt, special) of neighbouring tokens that are alike."""
        grouped = itertools.groupby(self.tokens, key=lambda token: (token.learnt, token.special))
        return [("".join(token.text for token in tokens), *kind) for kind, tokens in grouped]

    def to_dict(self) -> dict[str, Any]:
        said = [{"text": text, "learnt": learnt} for text, learnt, _ in self.pieces()]
        return {"id": self.id, "tokens": len(self.tokens), "learnt": self.learnt, "dropped": self.dropped,
                "notes": self.notes, "pieces": said}  # fmt: skip


def show_example(
    record: Record, renderer: ChatRenderer, learn: Learn = "all", row_tokens: int | None = None
) -> ShownExample:
    """One conversation, by the renderer and the mask that training uses. row_tokens: more are too long, None: any."""
    if record.messages is None:
        return ShownExample(record.id, [], dropped="no_messages")
    try:
        rendered = renderer.render(record.messages, record.meta.get("tools"))
        mask = learnt_mask(rendered, record.messages, learn)
    except DachengError as error:
        return ShownExample(record.id, [], [str(error.problem)], f"refused:{error.field or 'template'}")
    special, tokens, reached = renderer.tokenizer.special_ids, [], 0
    for token_id, (start, end), learnt in zip(rendered.token_ids, rendered.offsets, mask):
        text = rendered.text[max(start, reached) : end]
        reached = max(reached, end)
        tokens.append(ShownToken(token_id, text, bool(learnt), token_id in special))
    dropped = None
    if row_tokens is not None and len(tokens) > row_tokens:
        dropped = "longer_than_context"
    elif not any(mask[1:]):
        dropped = "assistant_says_nothing"
    return ShownExample(record.id, tokens, list(rendered.notes), dropped)


@dataclass(slots=True)
class Overview:
    """Figures over all conversations. shares: of each, how much of it is learnt."""

    examples: int = 0
    tokens: int = 0
    learnt: int = 0
    lengths: list[int] = field(default_factory=list)
    drops: Drops = field(default_factory=Drops)

    def add(self, example: ShownExample) -> None:
        if example.dropped is not None:
            self.drops.drop(example.dropped, len(example.tokens), example.id)
            return
        self.examples += 1
        self.tokens += len(example.tokens)
        self.learnt += example.learnt
        self.lengths.append(len(example.tokens))

    def to_dict(self) -> dict[str, Any]:
        lengths = sorted(self.lengths)
        return {
            "examples": self.examples, "tokens": self.tokens, "learnt": self.learnt,
            "learnt_share": self.learnt / self.tokens if self.tokens else 0.0,
            "median_tokens": lengths[len(lengths) // 2] if lengths else 0,
            "longest": lengths[-1] if lengths else 0,
            "dropped": dict(self.drops.dropped), "altered": dict(self.drops.altered),
            "where": dict(self.drops.examples),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """In sentences."""
        found = self.to_dict()
        lines = [f"{found['examples']} conversations, {found['tokens']} tokens, of which {found['learnt']} "
                 f"({found['learnt_share']:.0%}) are learnt; the longest has {found['longest']}, "
                 f"half have {found['median_tokens']} or fewer"]  # fmt: skip
        for verb in ("dropped", "altered"):
            for reason, count in found[verb].items():
                where = found["where"].get(reason)
                lines.append(f"{verb}: {count} {reason}" + (f" ({where})" if where else ""))
        return lines


def overlook(
    examples: Iterable[ShownExample], keep: Sequence[int] | int, drops: Drops
) -> tuple[list[ShownExample], Overview]:
    """(the examples at these places, or so many of the first; figures of all). drops: what reading them counted."""
    wanted = set(range(keep)) if isinstance(keep, int) else set(keep)
    kept, overview = [], Overview()
    for place, example in enumerate(examples):
        overview.add(example)
        if place in wanted:
            kept.append(example)
    overview.drops.merge(drops)
    return kept, overview


def printable(text: str) -> str:
    """The text with nothing in it that moves a cursor, colours a terminal or turns the reading direction: each such
    character as its escape."""
    return "".join(
        letter
        if letter in "\n\t" or (unicodedata.category(letter) not in ("Cc", "Cs") and letter not in _DIRECTIONS)
        else f"\\u{ord(letter):04x}"
        for letter in text
    )


def write_page(path: Path, examples: Sequence[ShownExample], overview: Overview, *, about: Mapping[str, str]) -> None:
    """One HTML page that needs nothing beside it. Everything of the data is escaped; no script runs in it."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["printable"] = printable
    template = environment.from_string(files("dacheng.align").joinpath("show.html").read_text(encoding="utf-8"))
    page = template.render(examples=examples, lines=overview.lines(), about=about)
    with replacing_file(path) as file:
        file.write(page.encode("utf-8", "replace"))
