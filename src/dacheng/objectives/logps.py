"""Log-probabilities of tokens: the one function of sampler and trainer, and its memory-lean form over a model."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dacheng.errors import UsageError
from dacheng.nn.contexts import Context, DenseCausal
from dacheng.objectives.cross_entropy import IGNORED

FEW_LOGITS = 1 << 17  # half a megabyte of float32


def token_logps(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(token) under softmax(logits / temperature), in float32.

    logits (..., V), tokens (...) int64 in 0 … V-1 -> (...). Raises UsageError for a temperature that is not above 0:
    greedy choices have no log-probability to learn from.
    """
    scaled = _scaled(logits, temperature)
    return _chosen(scaled, scaled.logsumexp(-1, keepdim=True), tokens)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Of softmax(logits / temperature), in nats: logits (..., V) -> (...) float32. A logit of -inf counts as 0."""
    scaled = _scaled(logits, temperature)
    return _entropy(scaled, scaled.logsumexp(-1, keepdim=True))


@overload
def model_logps(
    model: Any, tokens: Tensor, targets: Tensor, *, positions: Tensor | None = ..., context: Context | None = ...,
    temperature: float = ..., chunk: int = ..., entropy: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def model_logps(
    model: Any, tokens: Tensor, targets: Tensor, *, positions: Tensor | None = ..., context: Context | None = ...,
    temperature: float = ..., chunk: int = ..., entropy: Literal[True, "figure"],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def model_logps(
    model: Any,
    tokens: Tensor,
    targets: Tensor,
    *,
    positions: Tensor | None = None,
    context: Context | None = None,
    temperature: float = 1.0,
    chunk: int = 512,
    entropy: bool | Literal["figure"] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """log p(targets[b, t] | tokens[b, :t+1]) of a decoder, (B, T) float32; 0 where the target is -100.

    tokens, targets (B, T) int64; targets are shifted already (as in data.batches.TokenBatch) and -100 where nothing is
    counted. positions default to 0, 1, …; context to causal attention over each row, for which padding at the end needs
    no mask. entropy: also that of the distribution at each counted position, (B, T), with its gradient ("figure":
    without).

    The head sees only rows that have a target, `chunk` of them at a time; where there are more, a chunk's logits are
    made again for the backward instead of being kept: peak memory is chunk × V, the gradient is the same. Where
    there is room for it, a larger chunk is faster (docs/lab-notes/alignment-losses.md).
    """
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    hidden = model(tokens, positions, context if context is not None else DenseCausal())
    return hidden_logps(model, hidden, targets, temperature=temperature, chunk=chunk, entropy=entropy)


def hidden_logps(
    model: Any,
    hidden: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 512,
    entropy: bool | Literal["figure"] = False,
) -> Any:
    """As `model_logps`, from hidden states (B, T, D) that were computed already (a body that a value head shares)."""
    kept = targets.flatten() != IGNORED
    rows_ND, wanted_N = hidden.flatten(0, 1)[kept], targets.flatten()[kept]
    pieces = list(zip(rows_ND.split(chunk), wanted_N.split(chunk)))
    again = len(pieces) > 1 and torch.is_grad_enabled()
    found: list[tuple[Tensor, ...]] = []
    for rows, wanted in pieces:
        arguments = (model, rows, wanted, temperature, entropy)
        # One chunk alone: keeping its logits until the backward costs no more than making them again then.
        out = (
            checkpoint(_of_rows, *arguments, use_reentrant=False, preserve_rng_state=False)
            if again
            else _of_rows(*arguments)
        )
        found.append(out)
    outputs = [
        torch.zeros(kept.shape[0], dtype=parts[0].dtype, device=hidden.device)
        .masked_scatter(kept, torch.cat(parts))
        .view_as(targets)
        for parts in zip(*found)
    ]
    return (outputs[0], outputs[1]) if entropy else outputs[0]


def _of_rows(
    model: Any, rows_ND: Tensor, wanted_N: Tensor, temperature: float, with_entropy: bool | Literal["figure"]
) -> tuple[Tensor, ...]:
    scaled = _scaled(model.head(rows_ND), temperature)
    log_norm = scaled.logsumexp(-1, keepdim=True)
    logps = _chosen(scaled, log_norm, wanted_N)
    if not with_entropy:
        return (logps,)
    if with_entropy == "figure":
        return logps, _entropy_figure(scaled.detach(), log_norm.detach())
    return logps, _entropy(scaled, log_norm)


def _chosen(scaled: Tensor, log_norm: Tensor, tokens: Tensor) -> Tensor:
    return (scaled.gather(-1, tokens.unsqueeze(-1)) - log_norm).squeeze(-1)


def _entropy(scaled: Tensor, log_norm: Tensor) -> Tensor:
    log_p = scaled - log_norm
    p = log_p.exp()
    return -torch.linalg.vecdot(p, log_p.clamp(min=torch.finfo(log_p.dtype).min))  # 0 · -inf would be NaN


def _entropy_figure(scaled_NV: Tensor, log_norm_N1: Tensor) -> Tensor:
    """The same, a few rows at a time: what is made on the way stays in the cache (about a tenth of learning)."""
    few = max(1, FEW_LOGITS // scaled_NV.shape[-1])
    return torch.cat([_entropy(*rows) for rows in zip(scaled_NV.split(few), log_norm_N1.split(few))])


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise UsageError("must be above 0", field="temperature", value=temperature, remedy="1.0")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1.0 else logits / temperature
