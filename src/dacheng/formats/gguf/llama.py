"""Llama and what is built like it: Mistral, Mixtral, SmolLM2 and SmolLM3 share llama.cpp's order of rotary pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats.gguf.architecture import (
    OUTER,
    PRE_NORMS,
    PROJECTIONS,
    Architecture,
    Value,
    experts,
    permuted,
)
from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.gguf.keys import Keys
from dacheng.formats.gguf.rope import rope_keys
from dacheng.formats.huggingface.names import NameTable


def pair_order(heads: int, head_dim: int) -> Tensor:
    """Row i of ours is row `pair_order[i]` of the file's. llama.cpp rotates neighbours (2j, 2j + 1), transformers j and
    j + E/2: the converter writes the rows of q and k in the order of the pairs (LlamaModel.permute), per head."""
    rows = torch.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return rows.transpose(1, 2).reshape(-1)


def inverse_pair_order(heads: int, head_dim: int) -> Tensor:
    """Row i of the file's is row `inverse_pair_order[i]` of ours."""
    return torch.arange(heads * head_dim).reshape(heads, 2, head_dim // 2).transpose(1, 2).reshape(-1)


class Llama(Architecture):
    name, model_type, model_class = "llama", "llama", "LlamaForCausalLM"
    names = NameTable(OUTER | PRE_NORMS | PROJECTIONS)
    writable = True
    floats = (".block_sparse_moe.gate.weight",)

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        if keys.integer("expert_count", 0, minimum=0):
            return _mixtral_config(super().config(keys, file), keys)
        config = super().config(keys, file)
        keys.only("expert_used_count", (0,), "asks for experts, and there are none")
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
        if window := keys.integer("attention.sliding_window", 0, minimum=0):
            for name in ("attention_bias", "mlp_bias"):
                if config.pop(name):
                    raise keys.error("beside biases is not supported", "attention.sliding_window", window)
            config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window}
        return config

    def convert(self, name: str, file: GGUFFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
        part = name.split(".")[2] if name.startswith("blk.") and name.count(".") == 3 else ""
        if part in ("attn_q", "attn_k"):
            heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
            value = file.qtensor(name)
            rows = value.shape[0]
            if rows != heads * config["head_dim"] or config["head_dim"] % 2:
                raise DachengError(
                    f"{file.path}: {name} has {rows} rows, and the keys ask for {heads} heads of {config['head_dim']}",
                    field=name, value=list(value.shape), remedy="convert the model again",
                )  # fmt: skip
            yield self.translated(name, file), permuted(value, pair_order(heads, config["head_dim"]))
        elif config["model_type"] == "mixtral" and part in _MIXTRAL_EXPERTS:
            template = _MIXTRAL_EXPERTS[part].replace("{i}", name.split(".")[1])
            yield from experts(file.qtensor(name), template, config["num_local_experts"], name)
        elif config["model_type"] == "mixtral" and part == "ffn_gate_inp":
            layer = name.split(".")[1]
            yield f"model.layers.{layer}.block_sparse_moe.gate.weight", file.qtensor(name)
        else:
            yield self.translated(name, file), file.qtensor(name)

    def metadata(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return decoder_keys(config) | {
            "vocab_size": config["vocab_size"],
            "rope.dimension_count": head_dim_of(config),
            **rope_keys(rope_of(config)),
        }

    def export(self, name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
        part = name.rsplit(".", 2)[-2]
        if part in ("q_proj", "k_proj"):
            heads = config["num_attention_heads"]
            heads = heads if part == "q_proj" else config.get("num_key_value_heads") or heads
            return tensor[inverse_pair_order(heads, head_dim_of(config)).to(tensor.device)]
        return tensor


class SmolLM3(Llama):
    """Every fourth layer has no rotary positions: n_no_rope_layer_step, in llama.cpp's code and not in the file."""

    name, model_type, model_class = "smollm3", "smollm3", "SmolLM3ForCausalLM"
    writable = False

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        config = Architecture.config(self, keys, file)
        layers = config["num_hidden_layers"]
        if config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]:
            del config["head_dim"]  # as the family says it
        biases = ("blk.0.attn_q.bias" in file.tensors, "blk.0.ffn_up.bias" in file.tensors)
        return config | {
            "attention_bias": biases[0],
            "mlp_bias": biases[1],
            "no_rope_layer_interval": 4,
            "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(layers)],
            "layer_types": ["full_attention"] * layers,
            "use_sliding_window": False,
        }

    def convert(self, name: str, file: GGUFFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        yield from super().convert(name, file, {**config, "head_dim": width})


_MIXTRAL_EXPERTS = {
    f"ffn_{part}_exps": f"model.layers.{{i}}.block_sparse_moe.experts.{{e}}.{w}.weight"
    for part, w in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
}


def _mixtral_config(config: dict[str, Any], keys: Keys) -> dict[str, Any]:
    keys.only("expert_feed_forward_length", (config["intermediate_size"],), "differs from feed_forward_length")
    window = keys.integer("attention.sliding_window", 0, minimum=0)
    return config | {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": keys.integer("expert_count", maximum=2**12),
        "num_experts_per_tok": keys.integer("expert_used_count", maximum=2**12),
        "sliding_window": window or None,
    }


# --- shared by the writers --------------------------------------------------------------------------------------------
def decoder_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that llama.cpp asks of every decoder with RMS norms."""
    head_dim = head_dim_of(config)
    return {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config.get("num_key_value_heads") or config["num_attention_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }


def head_dim_of(config: Mapping[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of transformers 5, or `rope_theta` beside `rope_scaling` of transformers 4."""
    old = dict(config.get("rope_scaling") or {})
    if "rope_theta" in config:
        old.setdefault("rope_theta", config["rope_theta"])
    return dict(config.get("rope_parameters") or old)
