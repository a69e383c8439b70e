"""Which characters of a rendered chat the assistant has to say: the mask, without {% generation %} in the template.

What a model has to say is what comes behind the prompt that it is given: for each turn of the assistant, the chat up
to there is rendered with add_generation_prompt=True, and what this puts behind the last message (the header of the
turn) is looked for at the same place in the whole chat. The turn ends with the special token that ends it, which is
found by rendering the chat up to and with that turn, and a small conversation of two turns. Because the strings know
who wrote them (`tracked`), all of this compares only what the template itself writes: it may shorten, move or strip
what earlier messages say.

Where the pieces don't fit, the mask is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dacheng.errors import DachengError
from dacheng.text.chat.messages import ASSISTANT, Conversation
from dacheng.text.chat.tracked import GENERATED, TEMPLATE, runs_of

Span = tuple[int, int]
Render = Callable[[Sequence[dict[str, Any]], bool], str]
"""(messages, add_generation_prompt) -> text: of a beginning of the conversation."""

_REMEDY = (
    "put {% generation %} and {% endgeneration %} around what the assistant says in the template, or use another one"
)
_PROBE = ("alpha", "beta", "gamma", "delta")


@dataclass(slots=True)
class _Text:
    """A rendered text and its stretches (start, end, source) that were not written by the template."""

    plain: str
    data: list[tuple[int, int, int]]

    @classmethod
    def of(cls, text: str) -> _Text:
        data, position = [], 0
        for length, code in runs_of(text):
            if code & ~GENERATED != TEMPLATE:
                data.append((position, position + length, code & ~GENERATED))
            position += length
        return cls(str.__str__(text), data)

    @property
    def tail(self) -> str:
        """What the template writes behind everything else."""
        return self.plain[self.data[-1][1] if self.data else 0 :]


def _cutter(names: Sequence[str]) -> re.Pattern[str]:
    """Cuts a text at these names, longest first, and keeps them: text, name, text, name, text."""
    return re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else re.compile("()(?!)")


def generated_spans(text: str) -> list[Span]:
    """What a template with {% generation %} marked."""
    spans: list[Span] = []
    position = 0
    for length, code in runs_of(text):
        if code & GENERATED:
            start = spans.pop()[0] if spans and spans[-1][1] == position else position
            spans.append((start, position + length))
        position += length
    return spans


def assistant_spans(
    text: str,
    conversation: Conversation,
    render: Render,
    special: Sequence[str],
    added: Sequence[str],
    *,
    prompted: bool = False,
    open_ended: bool = False,
) -> list[Span]:
    """One span for each of the assistant's messages, from behind the prompt to behind the token that ends the turn.

    special: names of the special tokens; added: of all added tokens, these among them. prompted: the text ends with a
    prompt. open_ended: it stops inside the last message. Raises DachengError, naming the message, where a turn's limits
    cannot be told.
    """
    whole = _Text.of(text)
    spans: list[Span] = []
    turns = [k for k, message in enumerate(conversation.messages) if message["role"] in ASSISTANT]
    pieces, all_pieces = _cutter(special), _cutter(added)
    ending = _plain_ending(render, pieces) if turns else None
    for k in turns:
        index, last = conversation.indices[k], k == len(conversation.messages) - 1
        own = [span for span in whole.data if conversation.message_of(span[2]) == index]
        start, reached = _start(whole, own, conversation, k, render, all_pieces)
        if open_ended and last:
            end = len(whole.plain)
        else:
            tail = None
            if own and last and not prompted:
                tail = whole.tail
            elif own:
                tail = _Text.of(_rendered(render, conversation.messages[: k + 1], False, index)).tail
            end = _end(whole, own[-1][1] if own else start, tail, ending, pieces, index)
        foreign = [span for span in whole.data if start < span[1] and span[0] < end and span not in own]
        if foreign or start < reached or (spans and start < spans[-1][1]):
            raise _unknown(index, "the template mixes it with other messages")
        spans.append((start, end))
    return spans


def _start(
    whole: _Text,
    own: list[tuple[int, int, int]],
    conversation: Conversation,
    k: int,
    render: Render,
    pieces: re.Pattern[str],
) -> tuple[int, int]:
    """(where the turn begins, where the text before it ends)."""
    index = conversation.indices[k]
    prompt = _Text.of(_rendered(render, conversation.messages[:k], True, index))
    before = [span for span in whole.data if _is_before(span, own, conversation, index)]
    anchor = before[-1][1] if before else 0
    if (before[-1][2] if before else None) != (prompt.data[-1][2] if prompt.data else None):
        raise _unknown(index, "what stands before it is not what stands before it in the prompt")
    header = prompt.tail
    following = next((span[0] for span in whole.data if span[0] >= anchor), len(whole.plain))
    between = whole.plain[anchor:following]
    if between.startswith(header):
        return anchor + len(header), anchor
    if own and header.startswith(between):  # the prompt says more (an empty thought, say) than stands in the chat
        return own[0][0], anchor
    # The prompt begins a thought ("<think>") where the chat has a call ("<tool_call>"): the turn begins where both
    # begin with some token of their own. Nothing else in common is enough.
    parted = _parting(header, between, pieces)
    if own and parted is not None:
        return anchor + parted, anchor
    raise _unknown(index, f"the prompt ends with {header!r}, and before the message stands {between!r}")


def _parting(a: str, b: str, pieces: re.Pattern[str]) -> int | None:
    """Length of what two texts have in common, if it has a token and in both a different token comes next."""
    x, y = (pieces.split(text) for text in (a, b))
    same = next((i for i, (left, right) in enumerate(zip(x, y)) if left != right), min(len(x), len(y)))
    if same % 2 and 1 < same < min(len(x), len(y)):
        return len("".join(x[:same]))
    return None


def _is_before(
    span: tuple[int, int, int], own: list[tuple[int, int, int]], conversation: Conversation, index: int
) -> bool:
    if own:
        return span[1] <= own[0][0]
    message = conversation.message_of(span[2])
    return message is not None and message < index


def _end(whole: _Text, position: int, tail: str | None, ending: str | None, pieces: re.Pattern[str], index: int) -> int:
    """Behind the special token that ends the turn; position: behind the last character that is the message's own.

    tail: what the template writes behind it when the chat stops there.
    """
    following = next((span[0] for span in whole.data if span[0] >= position), len(whole.plain))
    closing = whole.plain[position:following]
    if ending is not None and ending in closing:
        end = closing.index(ending) + len(ending)
        if tail is None or tail.startswith(closing[:end]):
            return position + end
    if tail is not None and (shared := _shared(closing, tail, pieces)):
        return position + len("".join(shared))
    raise _unknown(
        index,
        f"behind it stands {closing!r}, with no special token of this tokenizer that ends the turn",
    )


def _plain_ending(render: Render, pieces: re.Pattern[str]) -> str | None:
    """The special token that ends a plain turn: of "<|im_end|>\\n<|im_start|>user\\n" (another turn follows) and
    "<|im_end|>\\n" (none does) what is the same, up to its last special token. None if the template refuses
    the probe."""
    roles = ("user", "assistant") * 2
    try:
        text = str.__str__(render([{"role": r, "content": c} for r, c in zip(roles, _PROBE)], False))
    except DachengError:
        return None
    places = [text.find(word) for word in _PROBE]
    if -1 in places or places != sorted(places):
        return None
    inner = text[places[1] + len(_PROBE[1]) : places[2]]
    shared = _shared(inner, text[places[3] + len(_PROBE[3]) :], pieces)
    return shared[-1] if shared else None


def _shared(a: str, b: str, pieces: re.Pattern[str]) -> list[str]:
    """What two texts begin with, cut at special tokens, up to and with the last special token of it."""
    same: list[str] = []
    for x, y in zip(pieces.split(a), pieces.split(b)):
        if x != y:
            break
        same.append(x)
    return same[: len(same) // 2 * 2]  # text, special token, text, special token…


def _rendered(render: Render, messages: Sequence[dict[str, Any]], prompt: bool, index: int) -> str:
    try:
        return render(messages, prompt)
    except DachengError as error:
        what = "up to it" if prompt else "with it as the last message"
        raise _unknown(index, f"the template does not take the chat {what}: {error.problem}") from error


def _unknown(index: int, reason: str) -> DachengError:
    return DachengError(
        f"which characters the assistant has to say cannot be told from this template: {reason}",
        field=f"messages[{index}]", remedy=_REMEDY,
    )  # fmt: skip
