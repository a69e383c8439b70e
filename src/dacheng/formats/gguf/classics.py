"""GPT-2 and GPT-NeoX (Pythia): layer norms with biases, one matrix for queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dacheng.errors import DachengError
from dacheng.formats.gguf.architecture import (
    EMBEDDING,
    HEAD,
    MAX_LAYERS,
    Architecture,
    Value,
    embedding_shape,
    float_tensor,
    is_tied,
    permuted,
    refuse_unsupported,
    special_ids,
)
from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.gguf.keys import Keys
from dacheng.formats.gguf.rope import rope_parameters
from dacheng.formats.huggingface.names import NameTable


def _table(outer: Mapping[str, str], prefix: str, layer: Mapping[str, str]) -> NameTable:
    """Weights and biases of each layer."""
    inner = {
        f"blk.{{i}}.{a}.{kind}": f"{prefix}.{{i}}.{b}.{kind}" for a, b in layer.items() for kind in ("weight", "bias")
    }
    return NameTable(dict(outer) | inner)


class GPT2(Architecture):
    """The family keeps its matrices transposed (Conv1D)."""

    name, model_type, model_class = "gpt2", "gpt2", "GPT2LMHeadModel"
    floats = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    names = _table(
        {
            EMBEDDING: "transformer.wte.weight",
            "position_embd.weight": "transformer.wpe.weight",
            "output_norm.weight": "transformer.ln_f.weight",
            "output_norm.bias": "transformer.ln_f.bias",
            HEAD: "lm_head.weight",
        },
        "transformer.h",
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
    )

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        vocab, width = embedding_shape(keys, file)
        refuse_unsupported(keys)
        return {
            "model_type": self.model_type,
            "architectures": [self.model_class],
            "vocab_size": vocab,
            "n_positions": keys.integer("context_length"),
            "n_embd": width,
            "n_layer": keys.integer("block_count", maximum=MAX_LAYERS),
            "n_head": keys.integer("attention.head_count"),
            "n_inner": keys.integer("feed_forward_length"),
            "activation_function": "gelu_new",
            "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
            "tie_word_embeddings": is_tied(keys, file),
            **special_ids(file),
        }

    def convert(self, name: str, file: GGUFFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
        theirs = self.translated(name, file)
        if theirs.endswith(self.floats):
            yield theirs, float_tensor(file, name).transpose(0, -1).contiguous()
        else:
            yield theirs, file.qtensor(name)


class GPTNeoX(Architecture):
    """The file has all queries, then all keys, then all values; the family has them head by head."""

    name, model_type, model_class = "gptneox", "gpt_neox", "GPTNeoXForCausalLM"
    floats = (".query_key_value.weight",)
    names = _table(
        {
            EMBEDDING: "gpt_neox.embed_in.weight",
            "output_norm.weight": "gpt_neox.final_layer_norm.weight",
            "output_norm.bias": "gpt_neox.final_layer_norm.bias",
            HEAD: "embed_out.weight",
        },
        "gpt_neox.layers",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
    )

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        vocab, width = embedding_shape(keys, file)
        refuse_unsupported(keys)
        rope = {"partial_rotary_factor": 1.0} | rope_parameters(keys, file)  # the family's default is 0.25
        return {
            "model_type": self.model_type,
            "architectures": [self.model_class],
            "vocab_size": vocab,
            "hidden_size": width,
            "num_hidden_layers": keys.integer("block_count", maximum=MAX_LAYERS),
            "num_attention_heads": keys.integer("attention.head_count"),
            "intermediate_size": keys.integer("feed_forward_length"),
            "hidden_act": "gelu",
            "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
            "max_position_embeddings": keys.integer("context_length"),
            "use_parallel_residual": keys.boolean("use_parallel_residual", True),
            "attention_bias": "blk.0.attn_qkv.bias" in file.tensors,
            "rope_parameters": rope,
            "tie_word_embeddings": is_tied(keys, file),
            **special_ids(file),
        }

    def convert(self, name: str, file: GGUFFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
        value: Value = file.qtensor(name)
        if ".attn_qkv." in name:
            heads, rows = config["num_attention_heads"], file.entry(name).shape[0]
            if rows % (3 * heads):
                raise DachengError(
                    f"{file.path}: {rows} rows are not queries, keys and values of {heads} heads", field=name,
                    value=rows, remedy="convert the model again",
                )  # fmt: skip
            order = torch.arange(rows).reshape(3, heads, rows // (3 * heads)).transpose(0, 1).reshape(-1)
            value = permuted(value, order)
        yield self.translated(name, file), value
