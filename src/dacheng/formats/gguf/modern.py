"""OLMo-2 and 3, Phi-3, gpt-oss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dacheng.errors import DachengError
from dacheng.formats.gguf.architecture import (
    OUTER,
    PRE_NORMS,
    PROJECTIONS,
    QK_NORMS,
    Architecture,
    Value,
    float_tensor,
    layer_names,
)
from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.gguf.gemma import layer_types
from dacheng.formats.gguf.keys import Keys
from dacheng.formats.gguf.rope import LONG, SHORT
from dacheng.formats.huggingface.names import NameTable


class Olmo2(Architecture):
    """Norms behind attention and MLP. OLMo-3 is the same with windows, whose layers keep unscaled angles."""

    name, model_type, model_class = "olmo2", "olmo2", "Olmo2ForCausalLM"
    names = NameTable(
        OUTER
        | PROJECTIONS
        | QK_NORMS
        | layer_names(
            {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
        )
    )

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        config = super().config(keys, file) | {"attention_bias": False}
        if config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]:
            del config["head_dim"]  # as the family says it
        window = keys.integer("attention.sliding_window", 0, minimum=0)
        if not window:
            return config
        whole = config["rope_parameters"]
        local = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", whole["rope_theta"])}
        return config | {
            "model_type": "olmo3",
            "architectures": ["Olmo3ForCausalLM"],
            "sliding_window": window,
            "layer_types": layer_types(keys, config["num_hidden_layers"], 4),
            "rope_parameters": {"full_attention": whole, "sliding_attention": local},
        }


class Phi3(Architecture):
    """Queries, keys and values are one matrix, and so are gate and up, in the file as in the family."""

    name, model_type, model_class = "phi3", "phi3", "Phi3ForCausalLM"
    floats = ("qkv_proj.weight", "gate_up_proj.weight")
    names = NameTable(
        OUTER
        | PRE_NORMS
        | layer_names(
            {
                "attn_qkv": "self_attn.qkv_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_up": "mlp.gate_up_proj",
                "ffn_down": "mlp.down_proj",
            }
        )
    )

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        config = super().config(keys, file)
        del config["head_dim"]
        if config["hidden_size"] % config["num_attention_heads"]:
            raise keys.error("does not divide the width", "attention.head_count", config["num_attention_heads"])
        original = keys.integer("rope.scaling.original_context_length", config["max_position_embeddings"])
        return config | {
            "original_max_position_embeddings": original,
            "sliding_window": keys.integer("attention.sliding_window", 0, minimum=0) or None,
        }

    def tensors(self, file: GGUFFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
        if (LONG in file.tensors) != (SHORT in file.tensors):
            raise DachengError(f"{file.path} lacks one of {LONG} and {SHORT}", field=LONG, remedy="copy it again")
        yield from super().tensors(file, config)


class GptOss(Architecture):
    """Attention with sinks, windows on every second layer (openai-moe.cpp), experts in MXFP4.

    The family keeps its experts transposed, gate and up interleaved.
    """

    name, model_type, model_class = "gpt-oss", "gpt_oss", "GptOssForCausalLM"
    floats = (".router.weight",)
    names = NameTable(
        OUTER
        | PROJECTIONS
        | layer_names({"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"})
        | {
            "blk.{i}.attn_sinks.weight": "model.layers.{i}.self_attn.sinks",
            "blk.{i}.ffn_gate_inp.weight": "model.layers.{i}.mlp.router.weight",
            "blk.{i}.ffn_gate_inp.bias": "model.layers.{i}.mlp.router.bias",
        }
    )

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        width = keys.integer("expert_feed_forward_length")
        keys.understood("feed_forward_length")  # the experts are all there is
        config = super().config(keys, file) if "feed_forward_length" in keys else self._without_dense(keys, file)
        rope = config["rope_parameters"]
        if rope["rope_type"] == "yarn":
            rope |= {"truncate": False} | {k: rope.get(k, v) for k, v in (("beta_fast", 32.0), ("beta_slow", 1.0))}
        return config | {
            "intermediate_size": width,
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
            "sliding_window": keys.integer("attention.sliding_window"),
            "layer_types": _alternating(config["num_hidden_layers"]),
            "num_local_experts": keys.integer("expert_count", maximum=2**12),
            "num_experts_per_tok": keys.integer("expert_used_count", maximum=2**12),
        }

    def _without_dense(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        from dacheng.formats.gguf.architecture import decoder_config
        from dacheng.formats.gguf.rope import rope_parameters

        config = decoder_config(keys, file, self.model_type, self.model_class)
        return config | {"rope_parameters": rope_parameters(keys, file)}

    def convert(self, name: str, file: GGUFFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
        parts = name.split(".")
        if len(parts) != 4 or not parts[2].endswith("_exps"):
            yield from super().convert(name, file, config)
            return
        prefix, part, kind = f"model.layers.{parts[1]}.mlp.experts", parts[2], parts[3]
        suffix = "" if kind == "weight" else "_bias"
        shape = file.entry(name).shape
        if len(shape) != (3 if kind == "weight" else 2):
            raise DachengError(
                f"{file.path}: this is no stack of experts", field=name, value=list(shape),
                remedy="convert the model again",
            )  # fmt: skip
        if part == "ffn_down_exps":
            value = float_tensor(file, name)
            yield f"{prefix}.down_proj{suffix}", value.transpose(-1, -2).contiguous() if kind == "weight" else value
        elif part == "ffn_gate_exps":  # and the up part with it: value 2j is the gate's j, 2j + 1 the up's
            gate, up = float_tensor(file, name), float_tensor(file, name.replace("ffn_gate_exps", "ffn_up_exps"))
            if gate.shape != up.shape:
                raise DachengError(f"{file.path}: gate and up differ in shape", field=name, value=list(up.shape))
            if kind == "weight":
                gate, up = gate.transpose(-1, -2), up.transpose(-1, -2)
            yield f"{prefix}.gate_up_proj{suffix}", torch.stack([gate, up], dim=-1).flatten(-2)
        elif part != "ffn_up_exps":
            yield from super().convert(name, file, config)


def _alternating(layers: int) -> list[str]:
    return ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
