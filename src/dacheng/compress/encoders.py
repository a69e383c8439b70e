"""Encoders made smaller: fewer layers, neurons and words (prune.vocabulary has the tokenizer's side), eight-bit
weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dacheng.compress.prune.choose import keep_neurons
from dacheng.compress.prune.importance import hooked
from dacheng.compress.prune.keep import Keep
from dacheng.compress.prune.shrink import Cut
from dacheng.data.text_rows import length_batches, padded
from dacheng.errors import UsageError
from dacheng.formats.meta import on_meta
from dacheng.models.classifier import Classifier
from dacheng.models.encoder import Encoder, EncoderTraits
from dacheng.nn.linear import Dense
from dacheng.nn.packed import Packed, PackedEmbedding, pack_module
from dacheng.ops.integers import IntTensor, QSpec

_BATCH_TOKENS = 2048  # padding included


@torch.no_grad()
def shrink_encoder(encoder: Encoder, keep: Keep) -> Encoder:
    """A new encoder of the layers, neurons and words that stay; the given one is left as it is.

    Raises UsageError for heads and width, which an encoder's traits cannot say and its norms cannot make up for, and
    for packed weights.
    """
    if keep.heads is not None or keep.width is not None:
        raise UsageError("of an encoder layers, neurons and words are cut out", field="keep",
                         value="heads" if keep.heads is not None else "width", remedy="keep them all")  # fmt: skip
    for name, module in encoder.named_modules():
        if isinstance(module, Packed | PackedEmbedding):
            raise UsageError("packed weights cannot be cut", field=name, value=type(module).__name__,
                             remedy="cut first, and pack what is left")  # fmt: skip
    blocks = encoder.traits.block_traits()
    keep.check(blocks)
    cut = Cut(keep, blocks)
    state = {}
    for name, tensor in encoder.state_dict().items():
        if (new := cut.name(name)) is not None:
            state[new] = cut.tensor(name, tensor).clone()
    with on_meta():
        smaller = Encoder(_traits(encoder.traits, keep))
    smaller.family = encoder.family
    smaller.load_state_dict(state, strict=True, assign=True)
    return smaller.requires_grad_(True).train(encoder.training)


def _traits(t: EncoderTraits, keep: Keep) -> EncoderTraits:
    return replace(
        t,
        layers=t.layers if keep.layers is None else len(keep.layers),
        mlp_width=t.mlp_width if keep.neurons is None else len(keep.neurons[0]),
        vocab_size=t.vocab_size if keep.vocabulary is None else len(keep.vocabulary),
    )


@torch.no_grad()
def shrink_classifier(model: Classifier, keep: Keep) -> Classifier:
    """The same of a classifier; the head is copied."""
    encoder = shrink_encoder(model.encoder, keep)
    with on_meta():
        smaller = Classifier(replace(model.traits, encoder=encoder.traits))
    smaller.encoder, smaller.family = encoder, model.family
    smaller.classifier = type(model.classifier)(model.classifier.in_features, model.classifier.out_features)
    smaller.classifier.load_state_dict(model.classifier.state_dict())
    return smaller.train(model.training)


@torch.no_grad()
def prune_neurons(model: Classifier, rows: Sequence[Sequence[int]], pad_id: int, count: int) -> Classifier:
    """A new classifier with `count` neurons in each block's mlp: those whose outputs vary most, std(a) · ‖W_down‖ of
    the neuron's column, on `rows` of token ids. What the others add on average goes into the bias (mean replacement,
    Evci et al. 2018): a neuron that never varies goes without a trace.

    Raises UsageError for a count that the blocks do not have, and no rows.
    """
    if not rows:
        raise UsageError("neurons are chosen by some texts", field="rows", value=0, remedy="give training texts")
    downs = _downs(model)
    sums: dict[nn.Module, Tensor] = {down: torch.zeros(2, down.in_features, dtype=torch.float64) for down in downs}
    real: list[Tensor] = []

    def collect(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inside = given[0][real[0]].double()
        sums[module] += torch.stack([inside.sum(0), inside.square().sum(0)])

    total = 0
    with hooked(downs, collect, before=True):
        for batch in length_batches([len(row) for row in rows], _BATCH_TOKENS):
            tokens, lengths = padded([rows[i] for i in batch], pad_id)
            real[:] = [torch.arange(tokens.shape[1]) < lengths[:, None]]
            total += int(lengths.sum())
            model(tokens, lengths)
    means = [sums[down][0] / total for down in downs]
    spreads = [(sums[down][1] / total - mean.square()).clamp(min=0).sqrt() for down, mean in zip(downs, means)]
    keep = keep_neurons(
        torch.stack([spread.float() * down.weight.norm(dim=0) for spread, down in zip(spreads, downs)]),
        count,
    )
    smaller = shrink_classifier(model, keep)
    for new, kept, mean, down in zip(_downs(smaller), keep.neurons or (), means, downs):
        gone = torch.ones(len(mean), dtype=torch.bool)
        gone[torch.tensor(kept)] = False
        new.bias.add_(down.weight[:, gone] @ mean[gone].float())
    return smaller


def _downs(model: Classifier) -> list[Dense]:
    """The last map of each block's mlp."""
    return [down for name, down in model.named_modules() if name.endswith("mlp.down") and isinstance(down, Dense)]


@torch.no_grad()
def pack_classifier(model: Classifier, *, embedding: bool = True) -> Classifier:
    """Packs the linear maps of the blocks, and the table of words, in place, in eight bits with a scale for every 32
    values (round to nearest); returns the model, in evaluation mode.

    Positions, types, norms, pooler and head stay floats: together they are a few percent. Raises DachengError for a
    width that is no whole number of blocks, UsageError for a model that is packed already.
    """
    for name, module in model.named_modules():
        if isinstance(module, Packed | PackedEmbedding):
            raise UsageError("this model is packed already", field=name, value=module.format.name,
                             remedy="pack the model that it was made of")  # fmt: skip
    names = [name for name, module in model.encoder.blocks.named_modules() if isinstance(module, nn.Linear)]
    paths = [f"encoder.blocks.{name}" for name in names] + (["encoder.embed"] if embedding else [])
    for path in paths:
        weight = model.get_submodule(path).weight
        assert isinstance(weight, torch.Tensor)
        pack_module(model, path, IntTensor.from_float(weight.detach(), QSpec(8, 32)).to_blocks())
    return model.eval()
