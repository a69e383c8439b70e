"""GPT-2 (Radford et al. 2019): learned positions, layer norms with biases, and matrices stored transposed, q, k and v
as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dacheng.formats.huggingface.family import Family
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import PLAIN_ACTIVATIONS
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.shared_fields import read_shared, refuse_own_code
from dacheng.models.traits import DecoderTraits

_UNDERSTOOD = {
    "n_ctx": "n_positions, under its first name",
    "reorder_and_upcast_attn": "the order of the same operations",
    "task_specific_params": "how texts were sampled",
} | {
    f"summary_{name}": "of a head for classification"
    for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")
}
_BLOCK, _PREFIX = "transformer.h.{i}.", "transformer."
_TRANSPOSED = (".c_proj.weight", ".c_fc.weight", ".c_attn.weight")
_FUSED = _BLOCK + "attn.c_attn."


class GPT2(Family):
    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    derived = (".attn.bias", ".attn.masked_bias")  # the causal mask, stored by old converters
    heads_divide_width = True
    names = NameTable(
        {
            "embed.weight": _PREFIX + "wte.weight",
            "position_embedding.weight": _PREFIX + "wpe.weight",
            "lm_head.weight": "lm_head.weight",
        }
        | {f"norm.{kind}": f"{_PREFIX}ln_f.{kind}" for kind in ("weight", "bias")}
        | {
            f"blocks.{{i}}.{ours}.{kind}": f"{_BLOCK}{theirs}.{kind}"
            for ours, theirs in {
                "attention_norm": "ln_1",
                "attention.o": "attn.c_proj",
                "mlp_norm": "ln_2",
                "mlp.up": "mlp.c_fc",
                "mlp.down": "mlp.c_proj",
            }.items()
            for kind in ("weight", "bias")
        }
    )

    def to_traits(self, fields: Fields) -> DecoderTraits:
        read_shared(fields, ("attn_pdrop", "resid_pdrop", "embd_pdrop"))
        refuse_own_code(fields)
        fields.understood(_UNDERSTOOD)
        fields.only("scale_attn_by_inverse_layer_idx", (False,), "asks for a scale by layer, which is not built")
        width = fields.integer("n_embd", maximum=2**20)
        return DecoderTraits(
            vocab_size=fields.integer("vocab_size"),
            width=width,
            layers=fields.integer("n_layer", maximum=2**12),
            heads=fields.integer("n_head", maximum=2**16),
            mlp_width=fields.integer("n_inner", 4 * width),
            activation=fields.choice("activation_function", PLAIN_ACTIVATIONS, "gelu_new"),
            norm="layer",
            norm_eps=fields.number("layer_norm_epsilon", 1e-5),
            positions="learned",
            max_positions=fields.integer("n_positions", 1024),
            attention_bias=True,
            attention_scale=None if fields.boolean("scale_attn_weights", True) else 1.0,
            mlp_bias=True,
            tied_head=fields.boolean("tie_word_embeddings", True),
            initializer_range=fields.number("initializer_range", 0.02, or_zero=True),
        )

    def from_traits(self, traits: DecoderTraits) -> dict[str, Any]:
        activations = {ours: theirs for theirs, ours in reversed(PLAIN_ACTIVATIONS.items())}
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "vocab_size": traits.vocab_size,
            "n_embd": traits.width,
            "n_layer": traits.layers,
            "n_head": traits.heads,
            "n_inner": traits.mlp_size,
            "n_positions": traits.max_positions,
            "activation_function": activations.get(traits.activation, traits.activation),
            "layer_norm_epsilon": traits.norm_eps,
            "scale_attn_weights": traits.attention_scale is None,
            "tie_word_embeddings": traits.tied_head,
            "initializer_range": traits.initializer_range,
        }

    def stored_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        """The first checkpoints name the inner network alone."""
        if any(name.startswith(_PREFIX) for name in tensors):
            return dict(tensors)
        return {name if name.startswith("lm_head.") else _PREFIX + name: tensor for name, tensor in tensors.items()}

    def import_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        rest = {name: _turned(name, tensor) for name, tensor in tensors.items()}
        parts: dict[str, Tensor] = {}
        for i in range(traits.layers):
            for kind in ("weight", "bias"):
                split = rest.pop((_FUSED + kind).format(i=i)).split(traits.width)
                parts |= {f"blocks.{i}.attention.{part}.{kind}": tensor for part, tensor in zip("qkv", split)}
        return super().import_tensors(rest, traits) | parts

    def export_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        rest, fused = dict(tensors), {}
        for i in range(traits.layers):
            for kind in ("weight", "bias"):
                qkv = [rest.pop(f"blocks.{i}.attention.{part}.{kind}") for part in "qkv"]
                fused[(_FUSED + kind).format(i=i)] = torch.cat(qkv)
        return {name: _turned(name, t) for name, t in (super().export_tensors(rest, traits) | fused).items()}


def _turned(name: str, tensor: Tensor) -> Tensor:
    """(in, out) to (out, in) and back, where the file has it the other way round."""
    return tensor.t().contiguous() if name.endswith(_TRANSPOSED) else tensor
