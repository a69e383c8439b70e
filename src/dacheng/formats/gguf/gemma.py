"""Gemma 1 to 3. Their norms multiply by 1 + w; llama.cpp's files hold that sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

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
from dacheng.formats.gguf.keys import Keys
from dacheng.formats.gguf.llama import decoder_keys, head_dim_of
from dacheng.formats.gguf.rope import rope_keys, rope_parameters
from dacheng.formats.huggingface.names import NameTable

_NORMS = layer_names(
    {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
)


class Gemma(Architecture):
    name, model_type, model_class = "gemma", "gemma", "GemmaForCausalLM"
    names = NameTable(OUTER | PRE_NORMS | PROJECTIONS)

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        return super().config(keys, file) | {"hidden_act": "gelu_pytorch_tanh", "attention_bias": False}

    def convert(self, name: str, file: GGUFFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
        if name.endswith("norm.weight"):
            yield self.translated(name, file), float_tensor(file, name) - 1.0
        else:
            yield from super().convert(name, file, config)

    def activated(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        """The config with the field that Gemma 2 and 3 have for the activation."""
        config = Gemma.config(self, keys, file)
        return config | {"hidden_activation": config.pop("hidden_act")}


class Gemma2(Gemma):
    """What llama.cpp has in its code: windows on every second layer, and 27B's scale of attention (gemma2.cpp)."""

    name, model_type, model_class = "gemma2", "gemma2", "Gemma2ForCausalLM"
    names = NameTable(OUTER | PROJECTIONS | _NORMS)
    largest = 46  # layers of 27B, whose queries are scaled by the mean width of a head

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        config = self.activated(keys, file)
        width, heads, layers = (config[k] for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
        return config | {
            "query_pre_attn_scalar": width // heads if layers == self.largest else config["head_dim"],
            "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0, or_zero=True) or None,
            "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0, or_zero=True) or None,
            "sliding_window": keys.integer("attention.sliding_window", 4096),
            "layer_types": layer_types(keys, layers, 2),
        }


class Gemma3(Gemma2):
    """Five layers with a window and rotary angles of their own to one without (gemma3.cpp)."""

    name, model_type, model_class = "gemma3", "gemma3_text", "Gemma3ForCausalLM"
    names = NameTable(OUTER | PROJECTIONS | _NORMS | QK_NORMS)
    largest = 62
    writable = True

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        config = self.activated(keys, file)
        width, heads, layers = (config[k] for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
        window = keys.integer("attention.sliding_window", 0, minimum=0)
        theta = keys.number("rope.freq_base_swa", 10000.0)
        whole = rope_parameters(keys, file)
        if "rope.freq_base" not in keys:
            whole["rope_theta"] = 1000000.0
        return config | {
            "query_pre_attn_scalar": width // heads if layers == self.largest else config["head_dim"],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0, or_zero=True) or None,
            "sliding_window": window or None,
            "layer_types": layer_types(keys, layers, 6 if window else 1),
            "rope_parameters": {
                "full_attention": whole,
                "sliding_attention": {"rope_type": "default", "rope_theta": theta},
            },
        }

    def metadata(self, config: Mapping[str, Any]) -> dict[str, Any]:
        types = _types_of(config)
        period = next((i + 1 for i, kind in enumerate(types) if kind == "full_attention"), 6)
        if config.get("sliding_window") and types != _pattern(len(types), 6):
            raise _unwritable("layer_types", types, f"llama.cpp takes a window on all but every sixth, not {period}")
        if config.get("attn_logit_softcapping"):
            raise _unwritable("attn_logit_softcapping", config["attn_logit_softcapping"], "llama.cpp does not read it")
        width, heads = config["hidden_size"], config["num_attention_heads"]
        expected = width // heads if config["num_hidden_layers"] == self.largest else head_dim_of(config)
        if config.get("query_pre_attn_scalar", expected) != expected:
            raise _unwritable("query_pre_attn_scalar", config["query_pre_attn_scalar"], f"llama.cpp takes {expected}")
        parameters = config.get("rope_parameters") or {}
        whole = parameters.get("full_attention") or {
            "rope_theta": config.get("rope_theta", 1000000.0), **(config.get("rope_scaling") or {})
        }  # fmt: skip
        local = parameters.get("sliding_attention") or {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
        if local.get("rope_type", "default") != "default":
            raise _unwritable("rope_parameters", local, "llama.cpp does not scale the layers with a window")
        keys = decoder_keys(config) | rope_keys(whole)
        keys["rope.freq_base_swa"] = float(local.get("rope_theta", 10000.0))
        if config.get("sliding_window") and "sliding_attention" in types:
            keys["attention.sliding_window"] = int(config["sliding_window"])
        if config.get("final_logit_softcapping"):
            keys["final_logit_softcapping"] = float(config["final_logit_softcapping"])
        return keys

    def export(self, name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
        return tensor.float() + 1.0 if name.endswith("norm.weight") else tensor


def layer_types(keys: Keys, layers: int, period: int) -> list[str]:
    """From `attention.sliding_window_pattern`: a list of truths, or the period; `period` without it."""
    pattern = keys.get("attention.sliding_window_pattern", period)
    if isinstance(pattern, list):
        if len(pattern) != layers or not all(isinstance(item, bool) for item in pattern):
            raise keys.error("must be a truth for each layer", "attention.sliding_window_pattern", pattern)
        return ["sliding_attention" if item else "full_attention" for item in pattern]
    return _pattern(layers, keys.integer("attention.sliding_window_pattern", period, maximum=2**12))


def _pattern(layers: int, period: int) -> list[str]:
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]


def _types_of(config: Mapping[str, Any]) -> list[str]:
    layers = config["num_hidden_layers"]
    return config.get("layer_types") or _pattern(layers, config.get("sliding_window_pattern") or 6)


def _unwritable(field: str, value: object, why: str) -> DachengError:
    return DachengError(f"cannot be written to GGUF: {why}", field=field, value=value, remedy="export another format")
