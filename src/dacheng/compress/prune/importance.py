"""How much each head, neuron, channel or layer does on some text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dacheng.compress.hessian import check_finite
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.nn.norms import RMSNorm
from dacheng.objectives.base import StepContext
from dacheng.objectives.next_token import NextToken, context_for

if TYPE_CHECKING:
    from dacheng.data.batches import TokenBatch

Measure = Literal["activation", "gradient", "magnitude"]
MEASURES = ("activation", "gradient", "magnitude")


def head_importance(model: Decoder, batches: Iterable[TokenBatch], measure: Measure = "gradient") -> Tensor:
    """(layers, heads). gradient: E |Σ a · ∂L/∂a| over a head's output a (Michel et al. 2019, eq. 2), a layer's scores
    divided by their length as there. activation: mean length of what the head adds to the stream, ‖W_o a‖. magnitude:
    ‖W_o‖ of its columns, without text."""
    t = model.traits
    found = _importance(model, [b.attention.o for b in model.blocks], batches, measure, t.heads)  # type: ignore
    return found / found.norm(dim=1, keepdim=True).clamp(min=1e-20) if measure == "gradient" else found


def neuron_importance(model: Decoder, batches: Iterable[TokenBatch], measure: Measure = "activation") -> Tensor:
    """(layers, mlp width). gradient: E |a · ∂L/∂a| (Molchanov et al. 2019, Taylor of first order). activation: what the
    neuron adds to the stream, E |a| · ‖W_down‖ of its column. magnitude: that length alone."""
    downs = [getattr(block.mlp, "down", None) for block in model.blocks]
    if any(down is None for down in downs):
        raise UsageError("a layer of experts has no such neurons", field="neurons", remedy="prune another part")
    return _importance(model, downs, batches, measure, model.traits.mlp_size)  # type: ignore[arg-type]


def channel_importance(model: Decoder, batches: Iterable[TokenBatch]) -> Tensor:
    """(width,): Σ over the norms of the blocks of E |norm(x)| (Muralidharan et al. 2024, "Minitron", section 2.2)."""
    norms = [m for name, m in model.named_modules() if isinstance(m, RMSNorm) and m.width == model.traits.width
             and not name.endswith(("q_norm", "k_norm"))]  # fmt: skip
    total = torch.zeros(model.traits.width)

    def collect(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        total.add_(output.detach().float().abs().flatten(0, -2).mean(0).cpu())

    with hooked(norms, collect):
        _forwards(model, batches)
    check_finite(total, "activations")
    return total


def block_influence(model: Decoder, batches: Iterable[TokenBatch]) -> Tensor:
    """(layers,): 1 - E cos(x_in, x_out) of each block over the tokens (Men et al. 2024, "ShortGPT", eq. 1): how far it
    turns the stream. The lowest can go first."""
    blocks = list(model.blocks)
    total, count = torch.zeros(len(blocks), dtype=torch.float64), 0
    place = {block: i for i, block in enumerate(blocks)}

    def collect(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        cosine = torch.nn.functional.cosine_similarity(inputs[0].float(), output.float(), dim=-1)
        total[place[module]] += (1 - cosine).double().sum().cpu()

    with hooked(blocks, collect):
        for batch in _some(batches):
            _forward(model, batch)
            count += batch.tokens.numel()
    check_finite(total, "activations")
    return (total / count).float()


def _importance(
    model: Decoder, linears: list[nn.Module], batches: Iterable[TokenBatch], measure: Measure, parts: int
) -> Tensor:
    """Of the inputs of each linear map, in `parts` equal groups: (maps, parts)."""
    if measure not in MEASURES:
        raise UsageError("no such measure", field="measure", value=measure, remedy=", ".join(MEASURES))
    weights: list[Tensor] = [linear.weight for linear in linears]  # type: ignore[misc]
    if measure == "magnitude":
        return torch.stack([w.detach().float().square().sum(0).view(parts, -1).sum(1).sqrt() for w in weights])
    total, seen = torch.zeros(len(linears), parts), 0
    place = {linear: i for i, linear in enumerate(linears)}
    inputs: dict[nn.Module, Tensor] = {}

    def collect(module: Any, given: tuple[Tensor, ...]) -> None:
        a = given[0]
        if measure == "gradient":
            inputs[module] = a
            a.retain_grad()
        else:
            total[place[module]] += _added(a.float(), module.weight.float(), parts)

    with hooked(linears, collect, before=True):
        for batch in _some(batches):
            seen += batch.tokens.numel()
            if measure == "gradient":
                _backward(model, batch)
                for module, a in inputs.items():
                    assert a.grad is not None
                    by_part = (a.grad * a).detach().float().unflatten(-1, (parts, -1)).sum(-1)
                    total[place[module]] += by_part.abs().flatten(0, -2).sum(0)
                inputs.clear()
            else:
                _forward(model, batch)
    check_finite(total, "activations")
    return total / seen


def _added(a: Tensor, weight: Tensor, parts: int) -> Tensor:
    """Σ over tokens of ‖W_p a_p‖ for each group p of inputs. a (..., in), weight (out, in) -> (parts,)."""
    flat = a.flatten(0, -2).unflatten(-1, (parts, -1))  # (M, parts, size)
    columns = weight.unflatten(1, (parts, -1))  # (out, parts, size)
    if flat.shape[-1] == 1:
        return flat.abs().sum((0, 2)) * columns.norm(dim=0).squeeze(-1)
    gram = torch.einsum("ops,opt->pst", columns, columns)  # ‖W a‖² = aᵀ (Wᵀ W) a: no (M, parts, out) is made
    return torch.einsum("mps,pst,mpt->mp", flat, gram, flat).clamp(min=0).sqrt().sum(0)


@contextmanager
def hooked(modules: Iterable[nn.Module], collect: Callable[..., None], before: bool = False) -> Iterator[None]:
    handles = [m.register_forward_pre_hook(collect) if before else m.register_forward_hook(collect) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _some(batches: Iterable[TokenBatch]) -> Iterator[TokenBatch]:
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise UsageError("there is no text to measure on", field="batches", remedy="give at least one batch")


@torch.no_grad()
def _forward(model: Decoder, batch: TokenBatch) -> None:
    model(batch.tokens, batch.positions, context_for(batch))


def _forwards(model: Decoder, batches: Iterable[TokenBatch]) -> None:
    for batch in _some(batches):
        _forward(model, batch)


def _backward(model: Decoder, batch: TokenBatch) -> None:
    """Gradients of the activations; those of the weights are not kept."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad(), _differentiable(model):
            terms, _ = NextToken(routed=model.traits.moe is not None)(model, batch, StepContext(training=False))
            terms["next_token"].sum.backward()
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def _differentiable(model: Decoder) -> Iterator[None]:
    """The embeddings as something that has a gradient, though no weight has one."""

    def start(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output.requires_grad_(True) if output.is_leaf else output

    handle = model.embed.register_forward_hook(start)
    try:
        yield
    finally:
        handle.remove()
