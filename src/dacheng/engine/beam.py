"""Beam search, to be read: every step runs the whole texts again. For short outputs, lessons and comparisons; serving
samples instead, which reads better for open-ended text (Holtzman et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.nn.contexts import DenseCausal


@dataclass(frozen=True, slots=True)
class Beam:
    """A continuation: its tokens, an end of text included, and Σ log p(token) / length ** length_penalty."""

    token_ids: list[int]
    score: float


@torch.inference_mode()
def beam_search(
    model: Decoder,
    prompt: Sequence[int],
    *,
    beams: int = 4,
    max_tokens: int = 32,
    end_ids: Sequence[int] = (),
    length_penalty: float = 1.0,
) -> list[Beam]:
    """The `beams` best continuations found, best first (Graves 2012; lengths normalised as in Wu et al. 2016, eq. 14,
    with transformers' simpler divisor). Stops when that many have ended, or at max_tokens.

    Raises UsageError for an empty prompt, fewer than one beam or token, or more tokens than the model has positions.
    """
    _check(model, prompt, beams, max_tokens)
    ends, vocab = set(end_ids), model.traits.vocab_size
    texts = torch.tensor([list(prompt)])  # (live beams, T)
    sums = torch.zeros(1)  # of each live beam's log-probabilities
    ended: list[Beam] = []
    for length in range(1, max_tokens + 1):
        log_probs = _next_log_probs(model, texts)  # (live, V)
        totals = (sums[:, None] + log_probs).flatten()
        # Twice as many as beams, and more for several ends: as many live ones are left however many candidates end.
        best = totals.topk(min((1 + max(1, len(ends))) * beams, vocab * len(texts)))
        live: list[tuple[int, int, float]] = []
        for rank, (total, place) in enumerate(zip(best.values.tolist(), best.indices.tolist())):
            row, token = divmod(place, vocab)
            if token not in ends:
                live.append((row, token, total))
            elif rank < beams:  # an end that is not among the best now would not have been kept as a beam either
                ended.append(Beam([*texts[row, len(prompt) :].tolist(), token], total / length**length_penalty))
            if len(live) == beams:
                break
        rows = torch.tensor([row for row, _, _ in live])
        tokens = torch.tensor([token for _, token, _ in live])
        texts = torch.cat((texts[rows], tokens[:, None]), dim=1)
        sums = torch.tensor([total for _, _, total in live])
        if len(ended) >= beams:
            break
    else:
        whole = [Beam(row[len(prompt) :].tolist(), total / max_tokens**length_penalty)
                 for row, total in zip(texts, sums.tolist())]  # fmt: skip
        ended += whole
    return sorted(ended, key=lambda beam: -beam.score)[:beams]


def _next_log_probs(model: Decoder, texts: Tensor) -> Tensor:
    positions = torch.arange(texts.shape[1]).expand_as(texts)
    return model.head(model(texts, positions, DenseCausal())[:, -1]).log_softmax(-1)


def _check(model: Decoder, prompt: Sequence[int], beams: int, max_tokens: int) -> None:
    for name, value in (("beams", beams), ("max_tokens", max_tokens)):
        if value < 1:
            raise UsageError("must be at least 1", field=name, value=value, remedy="raise it")
    if not prompt:
        raise UsageError("there is nothing to continue", field="prompt", value=prompt, remedy="begin with BOS or EOS")
    longest = model.traits.longest_text
    if len(prompt) + max_tokens > longest:
        raise UsageError(
            f"the model has {longest} positions",
            field="max_tokens",
            value=max_tokens,
            remedy=f"at most {longest - len(prompt)}",
        )
