"""Llama (Touvron et al. 2023): pre-norm RMS, SwiGLU, rotary positions, grouped heads. Also SmolLM, TinyLlama and all
others that say `model_type: llama`. Its rotate-half rotary layout is ours, so no weight is permuted."""

from __future__ import annotations

from typing import Any

from dacheng.formats.huggingface.family import Family
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.names import NameTable
from dacheng.models.traits import DecoderTraits

_ACTIVATIONS = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
}  # all gated in this family
_DEFAULT_THETA = 10000.0

# Why each field that has no influence on the forward pass has none.
UNDERSTOOD = {
    "transformers_version": "who wrote the file",
    "_name_or_path": "where the writer had it from",
    "_attn_implementation_autoset": "the writer's choice of kernel",
    "dtype": "the tensors say it themselves",
    "torch_dtype": "the tensors say it themselves",
    "use_cache": "the engine decides",
    "pretraining_tp": "how the original was split: the same products",
    "bos_token_id": "the tokenizer's and generation's",
    "eos_token_id": "the tokenizer's and generation's",
    "pad_token_id": "the tokenizer's and generation's",
    "output_attentions": "what the writer's library returns beside the logits",
    "output_hidden_states": "what the writer's library returns beside the logits",
    "return_dict": "what the writer's library returns",
    "chunk_size_feed_forward": "the same product in pieces",
    "is_llama_config": "a mark of the converter",
    "transformers.js_config": "for another runtime",
    "unsloth_version": "who fine-tuned it",
    "unsloth_fixed": "a mark of the converter",
}


class Llama(Family):
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    derived = (".rotary_emb.inv_freq",)  # stored by old converters
    names = NameTable(
        {
            "embed.weight": "model.embed_tokens.weight",
            "norm.weight": "model.norm.weight",
            "lm_head.weight": "lm_head.weight",
            "blocks.{i}.attention_norm.weight": "model.layers.{i}.input_layernorm.weight",
            "blocks.{i}.mlp_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
        }
        | {
            f"blocks.{{i}}.attention.{part}.{kind}": f"model.layers.{{i}}.self_attn.{part}_proj.{kind}"
            for part in "qkvo"
            for kind in ("weight", "bias")
        }
        | {
            f"blocks.{{i}}.mlp.{part}.{kind}": f"model.layers.{{i}}.mlp.{part}_proj.{kind}"
            for part in ("gate", "up", "down")
            for kind in ("weight", "bias")
        }
    )

    def to_traits(self, fields: Fields) -> DecoderTraits:
        refuse_unsupported(fields)
        fields.understood(UNDERSTOOD)
        if dropout := fields.number("attention_dropout", 0.0, or_zero=True):
            fields.note(f"attention_dropout {dropout} concerns training, and is not applied there")
        return DecoderTraits(
            vocab_size=fields.integer("vocab_size"),
            width=fields.integer("hidden_size", maximum=2**20),
            layers=fields.integer("num_hidden_layers", maximum=2**12),
            heads=fields.integer("num_attention_heads", maximum=2**16),
            kv_heads=fields.integer("num_key_value_heads", None, maximum=2**16),
            head_width=fields.integer("head_dim", None, maximum=2**16),
            mlp_width=fields.integer("intermediate_size"),
            activation=fields.choice("hidden_act", _ACTIVATIONS, "silu"),
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope_theta=rope_theta(fields),
            max_positions=fields.integer("max_position_embeddings", 2048),
            tied_head=fields.boolean("tie_word_embeddings", False),
            attention_bias=fields.boolean("attention_bias", False),
            mlp_bias=fields.boolean("mlp_bias", False),
            initializer_range=fields.number("initializer_range", 0.02, or_zero=True),
        )

    def from_traits(self, traits: DecoderTraits) -> dict[str, Any]:
        activations = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "vocab_size": traits.vocab_size,
            "hidden_size": traits.width,
            "num_hidden_layers": traits.layers,
            "num_attention_heads": traits.heads,
            "num_key_value_heads": traits.n_kv_heads,
            "head_dim": traits.head_size,
            "intermediate_size": traits.mlp_size,
            "hidden_act": activations.get(traits.activation, traits.activation),
            "rms_norm_eps": traits.norm_eps,
            "rope_parameters": {"rope_theta": traits.rope_theta, "rope_type": "default"},
            "rope_theta": traits.rope_theta,  # what transformers before 5 reads
            "max_position_embeddings": traits.max_positions,
            "tie_word_embeddings": traits.tied_head,
            "attention_bias": traits.attention_bias,
            "mlp_bias": traits.mlp_bias,
            "initializer_range": traits.initializer_range,
        }

    def fits(self, traits: DecoderTraits) -> bool:
        # transformers refuses to build what is not divisible, though head_dim says the width of a head
        return traits.width % traits.heads == 0 and traits.initializer_range <= 1 and super().fits(traits)


def refuse_unsupported(fields: Fields) -> None:
    """Features that change the forward pass, that configs of this kind may ask for, and that are not built."""
    fields.only("rope_interleaved", (False,), "asks for interleaved rotary pairs, which are not built")
    fields.only("partial_rotary_factor", (1, 1.0), "asks for partly rotated heads, which are not built")
    fields.only("sliding_window", (), "asks for sliding windows, which this family does not have")
    fields.only("use_sliding_window", (False,), "asks for sliding windows, which this family does not have")
    fields.only("quantization_config", (), "says that the weights are quantised in a way that is not read")
    fields.only("per_layer_config", ({},), "gives layers different shapes, which is not built")
    fields.only("is_encoder_decoder", (False,), "asks for an encoder")
    fields.only("add_cross_attention", (False,), "asks for an encoder")
    fields.only("auto_map", (), "asks for code from the model's own files, which is never run")
    layers = fields.get("layer_types", [])
    if not isinstance(layers, list) or set(map(str, layers)) - {"full_attention"}:
        raise fields.error("asks for layers that are not built", "layer_types", layers, "supported: full_attention")


def rope_theta(fields: Fields) -> float:
    """The base of the rotary angles, from either form: `rope_theta` beside `rope_scaling` (transformers 4), or
    `rope_parameters` (transformers 5). Raises DachengError on any scaling, and when the two forms disagree."""
    found = {"rope_theta": fields.number("rope_theta", None)}
    for name in ("rope_parameters", "rope_scaling"):
        value = fields.get(name, {})
        if not isinstance(value, dict):
            raise fields.error("must be an object", name, value)
        inner = Fields(value, fields.path / name)
        for key in ("rope_type", "type"):
            inner.only(key, ("default",), "asks for scaled rotary positions, which are not built")
        inner.only("partial_rotary_factor", (1, 1.0), "asks for partly rotated heads, which are not built")
        found[name] = inner.number("rope_theta", None)
        fields.notes.extend(inner.finish())
    values = {value for value in found.values() if value is not None}
    if len(values) > 1:
        raise fields.error("has several values", "rope_theta", found, "keep the one that the model was trained with")
    return values.pop() if values else _DEFAULT_THETA
