"""What an architecture of GGUF is to the reader and the writer: a translation into a Hugging Face config and its names.

GGUF thus knows nothing of our traits: the families under formats/huggingface/ do the rest. Where a value is not in the
file because llama.cpp has it in its code, the code that it is in is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.gguf.keys import Keys
from dacheng.formats.gguf.rope import head_width, rope_parameters
from dacheng.formats.huggingface.names import NameTable
from dacheng.ops.qtensor import QTensor

Value = QTensor | Tensor
MAX_LAYERS = 2**12
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

# Names that most architectures share; each takes what it has.
OUTER = {
    EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}
_PROJECTIONS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
PROJECTIONS = {
    f"blk.{{i}}.{ours}.{kind}": f"model.layers.{{i}}.{theirs}.{kind}"
    for ours, theirs in _PROJECTIONS.items()
    for kind in ("weight", "bias")
}


def layer_names(names: Mapping[str, str]) -> dict[str, str]:
    """{"attn_norm": "input_layernorm"} -> weights of every layer."""
    return {f"blk.{{i}}.{a}.weight": f"model.layers.{{i}}.{b}.weight" for a, b in names.items()}


PRE_NORMS = layer_names({"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"})
QK_NORMS = layer_names({"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"})


class Architecture:
    """One value of general.architecture. Subclasses say what is theirs."""

    name: ClassVar[str]
    model_type: ClassVar[str]
    model_class: ClassVar[str]
    names: ClassVar[NameTable]  # GGUF's to the family's
    # Ends of the family's names of matrices that it fuses, stacks or transposes: these come as floats.
    floats: ClassVar[tuple[str, ...]] = ()
    writable: ClassVar[bool] = False

    # --- in -----------------------------------------------------------------------------------------------------------
    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        """What the family's config.json would say."""
        return decoder_config(keys, file, self.model_type, self.model_class) | {
            "intermediate_size": keys.integer("feed_forward_length"),
            "rope_parameters": rope_parameters(keys, file),
        }

    def tensors(self, file: GGUFFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
        """Every tensor under the family's name and in its layout, one at a time."""
        for name in file.tensors:
            if name not in ROPE_TENSORS:  # they are in the config
                yield from self.convert(name, file, config)

    def convert(self, name: str, file: GGUFFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
        yield self.translated(name, file), file.qtensor(name)

    def stays_packed(self, name: str) -> bool:
        """Whether the family takes the matrix of this (its own) name as it is in the file."""
        return not name.endswith(self.floats) and ".experts." not in name

    def translated(self, name: str, file: GGUFFile) -> str:
        """Raises DachengError for a tensor that the architecture does not know."""
        found = self.names.theirs(name)
        if found is None:
            raise DachengError(
                f"{file.path}: {self.name} has no such tensor that is known here, and it may change what is computed",
                field=name, value=list(file.tensors[name].shape), remedy="use a model without it",
            )  # fmt: skip
        return found

    # --- out ----------------------------------------------------------------------------------------------------------
    def metadata(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of `config`, without the architecture's prefix."""
        raise NotImplementedError

    def export(self, name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
        """A tensor under the family's name -> its values as llama.cpp wants them. Must work on meta tensors."""
        return tensor


def decoder_config(keys: Keys, file: GGUFFile, model_type: str, model_class: str) -> dict[str, Any]:
    """Sizes, norms and ids that nearly all have."""
    vocab, width = embedding_shape(keys, file)
    heads = keys.integer("attention.head_count")
    head_dim = head_width(keys)
    if (value_dim := keys.integer("attention.value_length", head_dim)) != head_dim:
        raise keys.error(f"differs from the width of a key, {head_dim}", "attention.value_length", value_dim)
    refuse_unsupported(keys)
    return {
        "model_type": model_type,
        "architectures": [model_class],
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": keys.integer("block_count", maximum=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.integer("context_length"),
        "tie_word_embeddings": is_tied(keys, file),
        **special_ids(file),
    }


def embedding_shape(keys: Keys, file: GGUFFile) -> tuple[int, int]:
    """(vocabulary, width), from the tensor itself."""
    shape = file.entry(EMBEDDING).shape
    if len(shape) != 2:
        raise DachengError(f"{file.path}: the embedding is no matrix", field=EMBEDDING, value=list(shape))
    vocab, width = shape
    if (said := keys.integer("embedding_length")) != width:
        raise keys.error(f"is not the width of {EMBEDDING}, {width}", "embedding_length", said)
    if (said := keys.integer("vocab_size", vocab)) != vocab:
        keys.note(f"vocab_size is {said}, and {EMBEDDING} has {vocab} rows: these count")
    return vocab, width


def is_tied(keys: Keys, file: GGUFFile) -> bool:
    """Whether the head is the embedding: there is none, or it is the same to the byte (old conversions of GPT-2)."""
    if HEAD not in file.tensors:
        return True
    head, embedding = file.entry(HEAD), file.entry(EMBEDDING)
    if (head.format, head.shape) != (embedding.format, embedding.shape):
        return False
    if not torch.equal(file.qtensor(HEAD).data, file.qtensor(EMBEDDING).data):
        return False
    keys.note(f"{HEAD} equals {EMBEDDING}: taken as one")
    return True


def special_ids(file: GGUFFile) -> dict[str, int | None]:
    """As config.json has them: null where there is none."""
    found = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        found[f"{role}_token_id"] = value if type(value) is int else None
    return found


def refuse_unsupported(keys: Keys) -> None:
    """Features that change the forward pass, that any architecture's keys may ask for, and that are not built."""
    keys.only("attention.causal", (True,), "asks for attention in both directions")
    keys.only("attention.clamp_kqv", (0.0,), "asks for clamped keys, queries and values")
    keys.only("attention.max_alibi_bias", (0.0,), "asks for ALiBi")
    keys.only("tensor_data_layout", ("reference", "Meta AI original pth"), "is an order of weights that is not read")
    keys.only("nextn_predict_layers", (0,), "asks for layers that predict several tokens")
    if (pooling := keys.get("pooling_type")) not in (None, 0):
        keys.note(f"{keys.architecture}.pooling_type is {pooling}: what is done with the hidden states is not read")


def float_tensor(file: GGUFFile, name: str) -> Tensor:
    """The values in float32."""
    return file.tensor(name).float()


def permuted(value: Value, index: Tensor) -> Value:
    """Rows (or, of a vector, values) in the order of `index`; matrices stay packed."""
    if isinstance(value, QTensor):
        return value.select_rows(index) if value.ndim == 2 else value.dequantize()[index]
    return value[index]


def experts(value: QTensor, template: str, config_experts: int, name: str) -> Iterator[tuple[str, Value]]:
    """A stack (experts, out, in) as one matrix each: `template` has {e}."""
    if value.ndim != 3 or value.shape[0] != config_experts:
        raise DachengError(
            f"{name} is no stack of {config_experts} matrices", field=name, value=list(value.shape),
            remedy="convert the model again",
        )  # fmt: skip
    for e in range(config_experts):
        yield template.replace("{e}", str(e)), value[e]
