"""Where a context ends and its continuation begins, in tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from dacheng.errors import DachengError


class Encodes(Protocol):
    bos_id: int | None
    eos_id: int

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Pair:
    """token_ids[score_from:] are scored. how: see encode_pair."""

    token_ids: list[int]
    score_from: int
    how: Literal["exact", "moved", "split"]


def start_ids(tokenizer: Encodes) -> list[int]:
    """What the family puts before every text: BOS for some, mostly nothing. What it puts behind one (a [SEP]) is left
    out: a text that is to be continued has not ended."""
    bare, whole = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=True)
    starts = [k for k in range(len(whole) - len(bare) + 1) if whole[k : k + len(bare)] == bare]
    return whole[: starts[0]] if starts else []


def encode_prompt(tokenizer: Encodes, text: str) -> list[int]:
    """Token ids of a text that is to be continued, at least one: an empty text is BOS or, without one, EOS, which ended
    the text before it in training."""
    return _begun(tokenizer, tokenizer.encode(text))


def _begun(tokenizer: Encodes, ids: list[int]) -> list[int]:
    ids = start_ids(tokenizer) + ids
    return ids or [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]


def encode_pair(tokenizer: Encodes, context: str, continuation: str) -> Pair:
    """Tokens of a (context, continuation) pair, of which exactly the continuation's are scored.

    exact: the tokens of the context are the first tokens of context + continuation, as they are wherever no token
           crosses the boundary; the rest is scored.
    moved: a token crosses it because the context ends in white space, which belongs to the next word's token. The space
           is moved to the continuation and scored with it (lm-evaluation-harness, `_encode_pair`).
    split: a token crosses it all the same. Both sides are encoded alone, so that every continuation of a context is
           scored after the same tokens, and not one character of the context is scored.

    The context is encoded as a prompt is (encode_prompt). Raises DachengError for a continuation without tokens.
    """
    alone = tokenizer.encode(continuation)
    if not alone:
        raise DachengError(
            "a continuation has no tokens", field="continuation", value=continuation, remedy="leave the pair out"
        )
    before = context.rstrip()
    attempts: list[tuple[str, str, Literal["exact", "moved"]]] = [(context, continuation, "exact")]
    if before != context:
        attempts.append((before, context[len(before) :] + continuation, "moved"))
    for head, tail, how in attempts:
        ids, whole = tokenizer.encode(head), tokenizer.encode(head + tail)
        if whole[: len(ids)] == ids and len(whole) > len(ids):
            return _pair(_begun(tokenizer, ids), whole[len(ids) :], how)
    return _pair(encode_prompt(tokenizer, context), alone, "split")


def _pair(before: list[int], scored: list[int], how: Literal["exact", "moved", "split"]) -> Pair:
    return Pair(before + scored, len(before), how)
