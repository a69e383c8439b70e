"""Memory that training takes, before anything is allocated: an estimate by formula, tensor by tensor.

What autograd keeps per token was counted with saved-tensor hooks on our own Decoder (the tests hold it to that); what
the allocator and the optimizer need beside it is an allowance. The whole is an estimate, good to about a quarter.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch

from dacheng.errors import DachengError, UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits

PROCESS = 350 << 20  # the interpreter with torch imported, its thread pools and buffers
SLACK = 1.1  # of everything else: fragmentation, temporary gradients
OPTIMIZERS = ("adamw", "muon", "sgd")


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes, all estimated. weights and gradients are float32; optimizer: its moments and the temporaries of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    process: int
    batch_rows: int

    @property
    def total(self) -> int:
        parts = self.weights + self.gradients + self.optimizer + self.activations + self.head
        return int(parts * SLACK) + self.process

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"total": self.total}

    def lines(self) -> list[str]:
        """The sum as lines of text."""
        names = ("weights", "gradients", "optimizer", "activations", "head", "process")
        parts = [f"{name} {_show(getattr(self, name))}" for name in names]
        return [f"memory {_show(self.total)} (estimated) = {SLACK:g} x (" + " + ".join(parts[:-1]) + f") + {parts[-1]}"]


@lru_cache(maxsize=1024)
def model_costs(traits: DecoderTraits, context_length: int) -> tuple[dict[str, int], float]:
    """Decoder.params() and the training FLOPs of a token, of a model without storage. Leave the result unchanged.

    Raises UsageError for traits that cannot be built.
    """
    with torch.device("meta"):
        model = Decoder(traits)
    return model.params(), model.flops(context_length, training=True)


def training_memory(
    traits: DecoderTraits,
    *,
    batch_rows: int,
    context_length: int,
    optimizer: str = "adamw",
    dtype: str = "float32",
    checkpoint_activations: bool = False,
    chunk: int = 512,
) -> TrainingMemory:
    """Bytes of training `batch_rows` rows of `context_length` tokens at once (a micro-batch).

    optimizer: "adamw" (two moments), "muon" (one for matrices) or "sgd" (none). dtype: of compute, "float32" or
    "bfloat16" (autocast over float32 weights). chunk: tokens whose logits are held (`NextToken.chunk`).
    Raises UsageError for sizes below 1, an unknown optimizer or dtype.
    """
    if optimizer not in OPTIMIZERS:
        raise UsageError("unknown optimizer", field="optimizer", value=optimizer, remedy=" or ".join(OPTIMIZERS))
    if dtype not in ("float32", "bfloat16"):
        raise UsageError("unknown compute dtype", field="dtype", value=dtype, remedy="float32 or bfloat16")
    for name, value in (("batch_rows", batch_rows), ("context_length", context_length), ("chunk", chunk)):
        if value < 1:
            raise UsageError("must be at least 1", field=name, value=value, remedy="raise it")
    params, _ = model_costs(traits, context_length)
    tokens = batch_rows * context_length
    per_token = activation_bytes(traits, context_length, dtype, checkpoint_activations)
    cast = 2 * (params["matrices"] + params["head"]) if dtype == "bfloat16" else 0  # autocast keeps bf16 copies
    table = traits.vocab_size * traits.width
    held = min(chunk, tokens)
    return TrainingMemory(
        weights=4 * params["total"] + cast,
        gradients=4 * params["total"],
        optimizer=_optimizer_bytes(traits, params, optimizer),
        activations=tokens * per_token,
        # logits, their exponentials and a product of them; the weight's gradient before it is added, twice when tied
        head=12 * held * traits.vocab_size + 8 * tokens * traits.width + 4 * table * (2 if traits.tied_head else 1),
        process=PROCESS,
        batch_rows=batch_rows,
    )


def activation_bytes(
    traits: DecoderTraits, context_length: int, dtype: str = "float32", checkpoint_activations: bool = False
) -> int:
    """Bytes kept per token between forward and backward, plus the gradients that pass through one layer."""
    t, size = traits, 4 if dtype == "float32" else 2
    layers = [_layer_bytes(t, i, context_length, size) for i in range(t.layers)]
    widest = max(t.mlp_size, 0 if t.moe is None else t.moe.expert_width * t.moe.experts_per_token)
    through = size * (3 * widest + 4 * t.heads * t.head_size)  # backward of one layer, beside what it kept
    # ids, positions, rotation, the mask of packed documents (one per window size), input and final norm
    windows = len({t.layer_window(i) for i in range(t.layers)})
    fixed = 24 + 4 * t.head_size + 4 * context_length * windows + _norm_bytes(t.width, t.norm_weight, size)
    if checkpoint_activations:  # the inputs of all layers, and one layer as it is run again
        return fixed + size * t.width * t.layers + max(layers) + through
    return fixed + sum(layers) + through


def fit_rows(
    traits: DecoderTraits, available_bytes: int, *, context_length: int, largest: int = 1 << 16, **options: Any
) -> int:
    """Most rows at once (up to `largest`) whose training fits in `available_bytes`; 0 when not even one does.

    options: those of `training_memory`.
    """
    low, high = 0, largest + 1
    while high - low > 1:
        middle = (low + high) // 2
        needed = training_memory(traits, batch_rows=middle, context_length=context_length, **options).total
        low, high = (middle, high) if needed <= available_bytes else (low, middle)
    return low


def check_memory(
    traits: DecoderTraits, available_bytes: int, *, batch_rows: int, context_length: int, **options: Any
) -> TrainingMemory:
    """The estimate if it fits in `available_bytes`: the check before training starts.

    Raises DachengError naming what is needed, what there is, and the nearest that fits: fewer rows at once, or with
    one row activation checkpointing, a shorter context, or a smaller model.
    """
    estimate = training_memory(traits, batch_rows=batch_rows, context_length=context_length, **options)
    if estimate.total <= available_bytes:
        return estimate
    raise DachengError(
        f"training would take about {_show(estimate.total)} (estimated), and {_show(available_bytes)} are available",
        field="batch_rows",
        value=batch_rows,
        remedy=_nearest(traits, available_bytes, context_length, options),
    )


def _nearest(traits: DecoderTraits, available_bytes: int, context_length: int, options: dict[str, Any]) -> str:
    rows = fit_rows(traits, available_bytes, context_length=context_length, **options)
    if rows:
        return f"batch_rows={rows} fits; more micro-batches keep the batch the same"
    if not options.get("checkpoint_activations"):
        again = options | {"checkpoint_activations": True}
        rows = fit_rows(traits, available_bytes, context_length=context_length, **again)
        if rows:
            return f"checkpoint_activations=true with batch_rows={rows} fits (and computes a third more)"
    shorter = context_length // 2
    while shorter >= 16:
        if fit_rows(traits, available_bytes, context_length=shorter, **options):
            return f"context_length={shorter} with batch_rows=1 fits"
        shorter //= 2
    return "not even one short row fits: use a smaller model"


def _layer_bytes(t: DecoderTraits, layer: int, context_length: int, size: int) -> int:
    """What one block keeps per token, counted on `models.decoder.Block`."""
    heads, kv = t.heads * t.head_size, t.n_kv_heads * t.head_size
    repeated = kv if t.n_kv_heads == 1 else heads  # grouped keys and values are repeated; one head is only viewed so
    kept = 2 * _norm_bytes(t.width, t.norm_weight, size)
    kept += size * (3 * heads + 2 * repeated) + 4 * t.heads  # q, k, v, output, output by rows; log-sum-exp
    if t.qk_norm:
        kept += 4 * (heads + kv + t.heads + t.n_kv_heads)
    if t.attention_soft_cap is not None:  # scores are kept whole: tanh and softmax
        kept += 2 * 4 * t.heads * context_length
    if t.residual_scalars:
        kept += size * t.width
    if t.has_value_embedding(layer):
        kept += size * (kv + 2 * t.n_kv_heads) + size * kv
    return kept + _mlp_bytes(t, layer, size)


def _mlp_bytes(t: DecoderTraits, layer: int, size: int) -> int:
    per_unit = size * (4 if t.gated else 2)  # gate, up, silu(gate) and their product; else: up and its activation
    if t.moe is None or not t.is_moe(layer):
        return per_unit * t.mlp_size
    m, k = t.moe, t.moe.experts_per_token
    routed = per_unit * m.expert_width * k + size * t.width * 3 * k  # input, output and weighted output of each choice
    return routed + per_unit * m.shared_width + 4 * 3 * m.experts + 16 * k


def _norm_bytes(width: int, weight: bool, size: int) -> int:
    """Input, normalised input, output (the same without a gain) and one statistic; inner ones in float32."""
    if size == 4:
        return 4 * (width * (3 if weight else 2) + 1)
    return width * (12 if weight else 10) + 4


def _optimizer_bytes(traits: DecoderTraits, params: dict[str, int], optimizer: str) -> int:
    if optimizer == "sgd":
        return 0
    if optimizer == "adamw":
        return 8 * params["total"]
    moments = 4 * params["matrices"] + 8 * (params["total"] - params["matrices"])
    # all matrices of one shape are orthogonalised as one batch: the stack, its square-ish products and the update
    stacked = traits.layers * traits.width * max(traits.mlp_size, traits.heads * traits.head_size)
    return moments + 4 * 4 * stacked * (2 if traits.gated else 1)


def _show(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 1 << 29 else f"{n_bytes / 2**20:.0f} MiB"
