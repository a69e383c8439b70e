"""A network that is really smaller: what `Keep` leaves out is cut out of every weight that touches it.

The smaller one is an ordinary decoder of other traits: it trains, saves, exports and serves like any, and transformers
loads it where it loads the family. `mask_out` sets the same parts to zero instead; both compute the same (Michel et al.
2019 measure with masks and then prune; here the two are one).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dacheng.compress.building import decoder_of
from dacheng.compress.prune.keep import Indices, Keep, group_sizes, rows_of_heads
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.packed import Packed, PackedEmbedding

_READS_STREAM = (".attention.q.weight", ".attention.k.weight", ".attention.v.weight", ".mlp.gate.weight",
                 ".mlp.up.weight")  # fmt: skip
_WRITES_STREAM = (".attention.o.weight", ".mlp.down.weight")


@torch.no_grad()
def shrink(model: Decoder, keep: Keep) -> Decoder:
    """A new, smaller model with weights of its own; the given one is left as it is.

    Width: a norm divides by the root of the mean square over fewer channels; its gain is multiplied by √(D/D') and its
    epsilon by D/D', which makes it the norm of the masked stream, exactly. Raises UsageError for what cannot be cut,
    and for packed weights (their blocks cannot be).
    """
    check_plain(model)
    t = model.traits
    keep.check(t)
    cut = Cut(keep, t)
    state = {}
    for old_name, tensor in model.state_dict().items():
        if (name := cut.name(old_name)) is not None:
            found = cut.tensor(old_name, tensor)
            state[name] = found.clone() if found is tensor else found
    return decoder_of(shrunk_traits(t, keep), state, model)


def shrunk_traits(t: DecoderTraits, keep: Keep) -> DecoderTraits:
    """The traits of what stays; patterns are spelt out for the layers that do."""
    layers = range(t.layers) if keep.layers is None else keep.layers

    def spelt(pattern: str) -> str:
        return "".join(pattern[i % len(pattern)] for i in layers)

    changes: dict[str, object] = {
        "layers": len(layers), "head_width": None if t.latent is not None else t.head_size, "mlp_width": t.mlp_size,
        "kv_heads": t.kv_heads, "output_bias": t.has_output_bias,
    }  # fmt: skip
    if keep.layers is not None:
        changes |= {"window_pattern": spelt(t.window_pattern), "rope_pattern": spelt(t.rope_pattern)}
        if t.moe is not None:
            changes["moe"] = replace(t.moe, pattern=spelt(t.moe.pattern))
    if keep.heads is not None:
        groups, per_group = group_sizes(keep.heads[0], t)
        changes |= {"heads": len(groups) * per_group, "kv_heads": len(groups)}
        changes["attention_scale"] = t.attention_scale
    if keep.neurons is not None:
        changes["mlp_width"] = len(keep.neurons[0])
    if keep.width is not None:
        changes |= {"width": len(keep.width), "norm_eps": t.norm_eps * t.width / len(keep.width)}
    if keep.vocabulary is not None:
        changes["vocab_size"] = len(keep.vocabulary)
    return replace(t, **changes)  # type: ignore[arg-type]


class Cut:
    """Which rows and columns of each weight stay."""

    def __init__(self, keep: Keep, traits: DecoderTraits) -> None:
        self.keep, self.traits = keep, traits
        layers = range(traits.layers) if keep.layers is None else keep.layers
        self.number = {old: new for new, old in enumerate(layers)}
        self.width = None if keep.width is None else torch.tensor(keep.width)
        self.gain = 1.0 if keep.width is None else (traits.width / len(keep.width)) ** 0.5

    def name(self, old: str) -> str | None:
        """Its name in the smaller model; None where it has no place there."""
        block, rest = _block(old)
        if block is None:
            return old
        return f"blocks.{self.number[block]}.{rest}" if block in self.number else None

    def tensor(self, name: str, tensor: Tensor) -> Tensor:
        block, rest = _block(name)
        if block is None:
            return self._outside(name, tensor)
        for dim, index in self._places(self.number[block], "." + rest):
            tensor = tensor.index_select(dim, index.to(tensor.device))
        if self.width is None:
            return tensor
        if rest.endswith("norm.weight"):
            return self._norm(tensor)
        if rest.endswith((".o.bias", ".down.bias")):
            return tensor[self.width]
        return tensor

    def _outside(self, name: str, tensor: Tensor) -> Tensor:
        if name in ("residual_lambdas", "input_lambdas") and self.keep.layers is not None:
            return tensor[torch.tensor(self.keep.layers)]
        if self.keep.vocabulary is not None and name in ("embed.weight", "lm_head.weight"):
            tensor = tensor[torch.tensor(self.keep.vocabulary)]
        if self.width is None:
            return tensor
        if name == "norm.weight":
            return self._norm(tensor)
        return tensor[:, self.width] if tensor.ndim == 2 else tensor

    def _norm(self, gain: Tensor) -> Tensor:
        gain = gain[self.width]
        return (1 + gain) * self.gain - 1 if self.traits.norm_offset else gain * self.gain

    def _places(self, number: int, rest: str) -> Iterator[tuple[int, Tensor]]:
        """(dimension, what stays of it) of a weight of the block that will be `number`."""
        if self.width is not None and rest.endswith(_READS_STREAM):
            yield 1, self.width
        if self.width is not None and rest.endswith(_WRITES_STREAM):
            yield 0, self.width
        if self.keep.neurons is not None and rest.startswith(".mlp."):
            neurons = torch.tensor(self.keep.neurons[number])
            if rest.startswith((".mlp.up.", ".mlp.gate.")):
                yield 0, neurons
            elif rest == ".mlp.down.weight":
                yield 1, neurons
        if self.keep.heads is not None and rest.startswith(".attention."):
            yield from self._heads(self.keep.heads[number], rest.removeprefix(".attention."))

    def _heads(self, heads: Indices, part: str) -> Iterator[tuple[int, Tensor]]:
        key_heads, _ = group_sizes(heads, self.traits)
        size = self.traits.head_size
        if part.startswith("q."):
            yield 0, rows_of_heads(heads, size)
        elif part.startswith(("k.", "v.")):
            yield 0, rows_of_heads(key_heads, size)
        elif part == "o.weight":
            yield 1, rows_of_heads(heads, size)
        elif part == "sinks":
            yield 0, torch.tensor(heads)


@torch.no_grad()
def mask_out(model: Decoder, keep: Keep) -> Decoder:
    """Sets to zero, in place, what `shrink` cuts out: the model stays as large as it was and computes what the smaller
    one does. Returns it. Of the vocabulary only the head can be told: its logits are those of the kept ids.

    Raises UsageError as `shrink` does.
    """
    check_plain(model)
    t = model.traits
    keep.check(t)
    kept = range(t.layers) if keep.layers is None else keep.layers
    number = {old: new for new, old in enumerate(kept)}
    for i in range(t.layers):
        block: Any = model.blocks[i]
        written = [m for m in (block.attention.o, getattr(block.mlp, "down", None)) if m is not None]
        if i not in number:
            _silence(block, t)
            continue
        if keep.heads is not None:
            gone = _others(rows_of_heads(keep.heads[number[i]], t.head_size), t.heads * t.head_size)
            block.attention.o.weight[:, gone] = 0
        if keep.neurons is not None:
            gone = _others(torch.tensor(keep.neurons[number[i]]), t.mlp_size)
            block.mlp.down.weight[:, gone] = 0
        if keep.width is not None:
            gone = _others(torch.tensor(keep.width), t.width)
            for linear in written:
                linear.weight[gone] = 0
                if linear.bias is not None:
                    linear.bias[gone] = 0
    if keep.width is not None:
        gone = _others(torch.tensor(keep.width), t.width)
        for table in (model.embed, model.position_embedding):
            if table is not None:
                table.weight[:, gone] = 0
    return model


def _silence(block: Any, t: DecoderTraits) -> None:
    """x + 0: only where the branches are added to the stream as they are."""
    from dacheng.nn.mlp import MLP

    mlp = block.mlp
    if t.norm_placement in ("sum",) or not isinstance(mlp, MLP) or t.residual_scalars:
        raise UsageError("this layer cannot be masked, only dropped", field="layers", remedy="shrink the model")
    for linear in (block.attention.o, mlp.down):
        linear.weight.zero_()
        if linear.bias is not None:
            linear.bias.zero_()


def _others(indices: Tensor, count: int) -> Tensor:
    gone = torch.ones(count, dtype=torch.bool)
    gone[indices] = False
    return gone


def _block(name: str) -> tuple[int | None, str]:
    first, _, rest = name.partition(".")
    if first != "blocks":
        return None, name
    number, _, rest = rest.partition(".")
    return int(number), rest


def check_plain(model: Decoder) -> None:
    from dacheng.nn.lora import LoRA

    for name, module in model.named_modules():
        if isinstance(module, Packed | PackedEmbedding | LoRA):
            kind = "an adapter" if isinstance(module, LoRA) else "packed weights"
            raise UsageError(
                f"a model with {kind} cannot be cut", field=name, value=type(module).__name__,
                remedy="merge the adapter first, and load the weights as floats",
            )  # fmt: skip
