"""Whether greedy texts are the same: alone and among others, ours and the peer's.

The contract (engine/engine.py): a greedy text is the same in any batch until the first near-tie, a step whose two
likeliest tokens are less than 1e-4 nats apart. The text that was generated alone comes with its log-probabilities,
which tell where that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NEAR = 1e-4  # nats
ENDS = ("<|im_end|>", "<|endoftext|>")


def text_of(answer: dict[str, Any]) -> str:
    return "".join(answer["texts"])


def gaps_until(alone: dict[str, Any], other: str) -> list[float]:
    """Of the tokens up to that which first shows a difference from another text."""
    gaps, shown = list[float](), 0
    for piece, found in zip(alone["texts"], alone["logprobs"]):
        for logprobs in found:
            for row in logprobs["top_logprobs"]:
                best = sorted(row.values(), reverse=True)
                gaps.append(best[0] - best[1] if len(best) > 1 else 0.0)
        shown += len(piece)
        if text_of(alone)[:shown] != other[:shown]:
            break
    return gaps


def compare_with_alone(alone: Sequence[dict[str, Any]], batched: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of texts: equal, equal until a near-tie, different without one (which would break the contract; then with
    the gap of the last token before the difference showed)."""
    equal, tied, different = 0, 0, list[float]()
    for one, other in zip(alone, batched, strict=True):
        if text_of(one) == text_of(other):
            equal += 1
            continue
        gaps = gaps_until(one, text_of(other))
        if min(gaps, default=0.0) < NEAR:
            tied += 1
        else:
            different.append(round(gaps[-1], 5))
    return {"texts": len(alone), "equal": equal, "equal_until_near_tie": tied, "different": len(different),
            "gaps_where_different": sorted(different)}  # fmt: skip


def until_end(alone: dict[str, Any]) -> str:
    """The text before the model would have ended it: what follows was only asked for to keep the server busy."""
    said = ""
    for piece, found in zip(alone["texts"], alone["logprobs"]):
        said += piece
        if any(token in ENDS for logprobs in found for token in logprobs["tokens"]):
            break
    return said


def compare_with_peer(alone: Sequence[dict[str, Any]], peer: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Share of texts that are equal where the model itself had not ended them, and mean share of the characters before
    the first difference. Two implementations round differently: no contract, but it says that both run one model."""
    equal, shares = 0, list[float]()
    for one, other in zip(alone, peer, strict=True):
        ours = until_end(one)
        theirs = text_of(other)[: len(ours)]
        same = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        equal += ours == theirs
        shares.append(same / len(ours) if ours else 1.0)
    return {"texts": len(alone), "equal": equal, "share_equal": round(equal / len(alone), 3),
            "mean_share_before_difference": round(sum(shares) / len(shares), 3)}  # fmt: skip
