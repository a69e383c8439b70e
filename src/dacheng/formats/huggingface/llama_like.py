"""What most open decoders share with Llama: the fields of config.json and the names of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from dacheng.formats.huggingface.family import Family
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.patterns import layer_list
from dacheng.formats.huggingface.rope import read_rope, write_rope
from dacheng.formats.huggingface.shared_fields import read_shared, refuse_own_code
from dacheng.formats.typed_values import REQUIRED
from dacheng.models.traits import DecoderTraits

GATED_ACTIVATIONS = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
    "gelu": "geglu",
}
PLAIN_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
BLOCK = "model.layers.{i}."
LLAMA_NAMES = (
    {
        "embed.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
        "blocks.{i}.attention_norm.weight": BLOCK + "input_layernorm.weight",
        "blocks.{i}.mlp_norm.weight": BLOCK + "post_attention_layernorm.weight",
    }
    | {
        f"blocks.{{i}}.attention.{part}.{kind}": f"{BLOCK}self_attn.{part}_proj.{kind}"
        for part in "qkvo"
        for kind in ("weight", "bias")
    }
    | {
        f"blocks.{{i}}.mlp.{part}.{kind}": f"{BLOCK}mlp.{part}_proj.{kind}"
        for part in ("gate", "up", "down")
        for kind in ("weight", "bias")
    }
)
QK_NORM_NAMES = {f"blocks.{{i}}.attention.{a}_norm.weight": f"{BLOCK}self_attn.{a}_norm.weight" for a in "qk"}

# What transformers takes for an absent field; REQUIRED where guessing a size would hide a damaged file.
LLAMA_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "intermediate_size": REQUIRED,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


class LlamaLike(Family):
    """Rotary positions, grouped heads, RMS norms and a gated mlp, said in Llama's words. A family adds what is its own:

    fixed: traits that it always has. flags: fields with true or false that are traits of the same name, and their
    defaults. own_traits, own_config: whatever else its config.json says, in both directions.
    """

    derived: ClassVar[tuple[str, ...]] = (".rotary_emb.inv_freq",)  # stored by old converters
    names = NameTable(LLAMA_NAMES)
    activations: ClassVar[Mapping[str, str]] = GATED_ACTIVATIONS
    default_activation: ClassVar[str] = "silu"
    activation_field: ClassVar[str] = "hidden_act"
    eps_field: ClassVar[str] = "rms_norm_eps"
    dropouts: ClassVar[tuple[str, ...]] = ("attention_dropout",)
    defaults: ClassVar[Mapping[str, Any]] = LLAMA_DEFAULTS
    fixed: ClassVar[Mapping[str, Any]] = {}
    flags: ClassVar[Mapping[str, bool]] = {}

    def to_traits(self, fields: Fields) -> DecoderTraits:
        read_shared(fields, self.dropouts)
        self.own_code(fields)
        d = self.defaults
        values = {
            "vocab_size": fields.integer("vocab_size"),
            "width": fields.integer("hidden_size", maximum=2**20),
            "layers": fields.integer("num_hidden_layers", maximum=2**12),
            "heads": fields.integer("num_attention_heads", maximum=2**16),
            "kv_heads": fields.integer("num_key_value_heads", d["num_key_value_heads"], maximum=2**16),
            "head_width": fields.integer("head_dim", d["head_dim"], maximum=2**16),
            "mlp_width": fields.integer("intermediate_size", d["intermediate_size"]),
            "activation": fields.choice(self.activation_field, self.activations, self.default_activation),
            "norm_eps": fields.number(self.eps_field, d["rms_norm_eps"]),
            "tied_head": fields.boolean("tie_word_embeddings", d["tie_word_embeddings"]),
            "initializer_range": fields.number("initializer_range", 0.02, or_zero=True),
        }
        values |= {name: fields.boolean(name, default) for name, default in self.flags.items()}
        values |= self.rope_traits(fields)
        values |= self.fixed
        return DecoderTraits(**(values | self.own_traits(fields, values)))

    def from_traits(self, traits: DecoderTraits) -> dict[str, Any]:
        activations = {ours: theirs for theirs, ours in reversed(list(self.activations.items()))}
        config = {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "vocab_size": traits.vocab_size,
            "hidden_size": traits.width,
            "num_hidden_layers": traits.layers,
            "num_attention_heads": traits.heads,
            "num_key_value_heads": traits.n_kv_heads,
            "head_dim": traits.head_size,
            "intermediate_size": traits.mlp_size,
            self.activation_field: activations.get(traits.activation, traits.activation),
            self.eps_field: traits.norm_eps,
            "max_position_embeddings": traits.max_positions,
            "tie_word_embeddings": traits.tied_head,
            "initializer_range": traits.initializer_range,
        }
        config |= {name: getattr(traits, name) for name in self.flags}
        return config | self.rope_config(traits) | self.own_config(traits)

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        """Traits beyond the shared ones. `values`: those that have been read. Without a window, asking for one is an
        error."""
        fields.only("sliding_window", (), "asks for sliding windows, which this family does not have")
        fields.only("use_sliding_window", (False,), "asks for sliding windows, which this family does not have")
        if fields.get("layer_types") is not None:
            layer_list(fields, "layer_types", values["layers"], {"full_attention": "L"})
        return {}

    def own_config(self, traits: DecoderTraits) -> dict[str, Any]:
        return {}

    def own_code(self, fields: Fields) -> None:
        refuse_own_code(fields)

    def rope_traits(self, fields: Fields) -> dict[str, Any]:
        return read_rope(
            fields,
            default_theta=self.defaults["rope_theta"],
            default_positions=self.defaults["max_position_embeddings"],
        )

    def rope_config(self, traits: DecoderTraits) -> dict[str, Any]:
        return write_rope(traits)
