"""BERT (Devlin et al. 2019) and what is distilled of it: MiniLM, and the encoders of sentences made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from dacheng.formats.huggingface.family import Layout
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import PLAIN_ACTIVATIONS
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.shared_fields import read_shared, refuse_own_code
from dacheng.models.encoder import Encoder, EncoderTraits

_UNDERSTOOD = {
    "gradient_checkpointing": "how it was trained",
    "classifier_dropout": "of a head that is left aside",
    "directionality": "of converters of the first checkpoints",
    "id2label": "of a head that is left aside",
    "label2id": "of a head that is left aside",
    "tie_word_embeddings": "of a head that is left aside",
} | {
    f"pooler_{name}": "written by the first Chinese checkpoint, and never read"
    for name in ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head", "type")
}
PREFIX = "bert."
_HEADS = ("cls.", "classifier.", "qa_outputs.")
_LAYER = "encoder.layer.{i}."
_BLOCK_NAMES = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.o": "attention.output.dense",
    "attention_post_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_post_norm": "output.LayerNorm",
}
NAMES = (
    {
        "embed.weight": "embeddings.word_embeddings.weight",
        "position_embedding.weight": "embeddings.position_embeddings.weight",
        "type_embedding.weight": "embeddings.token_type_embeddings.weight",
    }
    | {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in (("embed_norm", "embeddings.LayerNorm"), ("pooler", "pooler.dense"))
        for kind in ("weight", "bias")
    }
    | {
        f"blocks.{{i}}.{ours}.{kind}": f"{_LAYER}{theirs}.{kind}"
        for ours, theirs in _BLOCK_NAMES.items()
        for kind in ("weight", "bias")
    }
)


class Bert(Layout):
    model_type = "bert"
    architecture = "BertModel"
    architectures: ClassVar[tuple[str, ...]] = (
        "BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification", "BertForTokenClassification",
        "BertForQuestionAnswering", "BertForNextSentencePrediction",
    )  # fmt: skip
    derived: ClassVar = ("embeddings.position_ids",)  # 0, 1, 2, …, stored by old versions of transformers
    names = NameTable(NAMES)

    def to_traits(self, fields: Fields) -> EncoderTraits:
        """`pooler`, `pooling` and `normalized` are not in config.json: see formats.encoders."""
        read_shared(fields, ("attention_probs_dropout_prob", "hidden_dropout_prob"))
        refuse_own_code(fields)
        fields.understood(_UNDERSTOOD)
        fields.only("is_decoder", (False,), "asks for a decoder")
        fields.only("position_embedding_type", ("absolute",), "asks for positions that are not built here")
        return EncoderTraits(
            vocab_size=fields.integer("vocab_size"),
            width=fields.integer("hidden_size", maximum=2**20),
            layers=fields.integer("num_hidden_layers", maximum=2**12),
            heads=fields.integer("num_attention_heads", maximum=2**16),
            mlp_width=fields.integer("intermediate_size"),
            activation=fields.choice("hidden_act", PLAIN_ACTIVATIONS, "gelu"),
            norm_eps=fields.number("layer_norm_eps", 1e-12),
            max_positions=fields.integer("max_position_embeddings", 512),
            token_types=fields.integer("type_vocab_size", 2),
            initializer_range=fields.number("initializer_range", 0.02, or_zero=True),
        )

    def from_traits(self, traits: EncoderTraits) -> dict[str, Any]:
        activations = {ours: theirs for theirs, ours in reversed(PLAIN_ACTIVATIONS.items())}
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "vocab_size": traits.vocab_size,
            "hidden_size": traits.width,
            "num_hidden_layers": traits.layers,
            "num_attention_heads": traits.heads,
            "intermediate_size": traits.mlp_width,
            "hidden_act": activations[traits.activation],
            "layer_norm_eps": traits.norm_eps,
            "max_position_embeddings": traits.max_positions,
            "type_vocab_size": traits.token_types,
            "initializer_range": traits.initializer_range,
        }

    def build(self, traits: EncoderTraits) -> Encoder:
        return Encoder(traits)

    def stored_tensors(self, tensors: Mapping[str, Tensor], traits: Any) -> dict[str, Tensor]:
        """Networks with a head name the encoder inside them."""
        return {name.removeprefix(PREFIX): tensor for name, tensor in plain_names(tensors).items()}

    def redundant(self, name: str, tensors: Mapping[str, Tensor], traits: Any) -> str | None:
        if name.startswith(_HEADS):
            return "it belongs to a head, and an encoder has none"
        return super().redundant(name, tensors, traits)


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first checkpoints call a norm's weights gamma and beta."""
    found = {}
    for name, tensor in tensors.items():
        for old, new in ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")):
            name = name.removesuffix(old) + new if name.endswith(old) else name
        found[name] = tensor
    return found
