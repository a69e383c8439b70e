"""adapter_config.json: which of its fields mean something here, and which would change what the adapter is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, UsageError
from dacheng.nn.lora_config import LoRAConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_READ = (
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
    "base_model_name_or_path", "init_lora_weights", "bias", "task_type", "target_modules",
)  # fmt: skip
# How the adapter was made, or where: the weights are what they are.
_WITHOUT_EFFECT = (
    "auto_mapping", "peft_version", "revision", "inference_mode", "fan_in_fan_out", "exclude_modules",
    "layers_to_transform", "layers_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "runtime_config", "qalora_group_size", "ensure_weight_tying", "megatron_config",
)  # fmt: skip
# What would change the network in ways that are not built, by what it asks for.
_REFUSED = {
    "modules_to_save": "whole modules beside the low-rank ones",
    "lora_bias": "a bias of B",
    "alora_invocation_tokens": "an adapter that begins at a token (aLoRA)",
    "use_qalora": "grouped inputs (QALoRA)",
    "layer_replication": "layers that are there twice",
    "target_parameters": "adapters of bare parameters",
    "trainable_token_indices": "new rows of the embedding",
    "use_bdlora": "block-diagonal matrices",
    "arrow_config": "routing among adapters",
    "kasa_config": "singular values beside A and B",
    "velora_config": "compressed activations",
    "monteclora_config": "sampled adapters",
}
_INIT_OF_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga", "lora-ga", "loraga")  # these moved the base as well
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,300}")


def read_config(config: Mapping[str, Any], path: Path) -> LoRAConfig:
    """Raises DachengError naming the field for anything that this reader would have to leave out."""
    if config.get("peft_type") != "LORA":
        raise _error(path, "not a LoRA adapter", "peft_type", config.get("peft_type"), "LORA is what is read")
    for name, value in config.items():
        if name in _REFUSED and value not in (None, False, [], {}):
            raise _error(path, f"the adapter has {_REFUSED[name]}, which is not built", name, value, "train without it")
        known = name in _READ or name in _WITHOUT_EFFECT or name in _REFUSED
        if not known and value not in (None, False, [], {}, ""):
            raise _error(path, "what this field asks for is not known", name, value, "write it with a known version")
    if config.get("bias", "none") != "none":
        raise _error(path, "the adapter trained biases as well", "bias", config["bias"], 'train with bias="none"')
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise _error(path, "an adapter for another task", "task_type", config["task_type"], "CAUSAL_LM")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_INIT_OF_THE_BASE):
        raise _error(path, "this start moved the base's weights as well", "init_lora_weights", init,
                     "convert it in PEFT (path_initial_model_for_weight_conversion)")  # fmt: skip
    try:
        return LoRAConfig(
            rank=config.get("r", 8),
            alpha=config.get("lora_alpha", 8),
            dropout=_number(config, "lora_dropout", 0.0, path),
            use_rslora=_flag(config, "use_rslora", path),
            use_dora=_flag(config, "use_dora", path),
            rank_pattern=_pattern(config, "rank_pattern", path),
            alpha_pattern=_pattern(config, "alpha_pattern", path),
            targets=_targets(config),
        )
    except UsageError as error:
        raise _error(path, error.problem, str(error.field), error.value, str(error.remedy)) from None


def _targets(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Only to be shown: which maps are adapted, the tensors say."""
    found = config.get("target_modules")
    names = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    return tuple(sorted(name for name in names if isinstance(name, str))) or ("all-linear",)


def _flag(config: Mapping[str, Any], name: str, path: Path) -> bool:
    value = config.get(name, False)
    if not isinstance(value, bool):
        raise _error(path, "true or false", name, value, "true or false")
    return value


def _number(config: Mapping[str, Any], name: str, default: float, path: Path) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _error(path, "not a number", name, value, "a number")
    return float(value)


def _pattern(config: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """PEFT takes regular expressions here. Names are taken; patterns from a file are not run."""
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise _error(path, "must map names to numbers", name, found, "{}")
    for key in found:
        if not _PLAIN_NAME.fullmatch(key):
            raise _error(path, "a regular expression in place of a name", name, key, "write the modules' names out")
    return found


def _error(path: Path, problem: str, field: str, value: object, remedy: str) -> DachengError:
    return DachengError(f"{path}: {problem}", field=field, value=value, remedy=remedy)
