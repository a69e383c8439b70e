"""A recipe of one stage as the small life that it stands for: what it needs is made before it, by the same mechanism.

    do: train                      # data -> tokenizer -> tokens [-> machine -> plan] -> train [-> eval]
    data: {source: python-stdlib}
    train: {steps: 400}

A section holds the keys of the stage of its name, so `train.steps=200` means the same here and in a life.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dacheng import yaml_text
from dacheng.errors import UsageError
from dacheng.life.graph import Life, parse
from dacheng.recipes import nearest, split_override

# section: (do, stages it takes from; those that are not part of the recipe are left out)
_SECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "data": ("data", ()),
    "tokenizer": ("tokenizer", ("data",)),
    "tokens": ("tokenize", ("data", "tokenizer")),
    "machine": ("measure", ()),
    "plan": ("plan", ("machine", "tokens")),
    "train": ("train", ("tokens", "tokenizer", "plan")),
    "eval": ("eval", ("train", "data")),
    "samples": ("sample", ("train", "data")),
    "adapt": ("adapt", ()),
    "sft": ("sft", ("train",)),
    "prefer": ("prefer", ("sft",)),
    "reward": ("reward", ("sft",)),
    "reinforce": ("reinforce", ("sft", "reward")),
    "quantize": ("quantize", ("train",)),
    "prune": ("prune", ("train",)),
    "merge": ("merge", ("train",)),
    "classify": ("classify", ()),
    "distil": ("distil", ("classify",)),
}
_ALWAYS = {
    "train": ("data", "tokenizer", "tokens", "train"), "data": ("data",), "tokenizer": ("data", "tokenizer"),
    "adapt": ("adapt",), "sft": ("sft",),
    "prefer": ("prefer",), "reward": ("reward",), "reinforce": ("reinforce",),
    "quantize": ("quantize",), "prune": ("prune",), "merge": ("merge",),
    "classify": ("classify",), "distil": ("distil",),
}  # fmt: skip
_IMPLIED = {"tokens": ("tokenizer",), "plan": ("machine", "tokens", "tokenizer")}


def load_recipe(
    source: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), do: str | Sequence[str] | None = None
) -> Life:
    """The life in a YAML file or a mapping: a list of stages, or one stage expanded. Raises UsageError.

    do: what a recipe of one stage must do ("train", or one of several), None for anything; a life of stages is then
    refused.
    """
    values = dict(source) if isinstance(source, Mapping) else yaml_text.read_mapping(source)
    name = "life" if isinstance(source, Mapping) else Path(source).stem
    found = values.get("do")
    if "stages" in values and found is None:
        if do is not None:
            raise UsageError("this is a whole life", field="recipe", value=str(source), remedy=f"dacheng run {source}")
        return parse(values, overrides, name)
    allowed = list(_ALWAYS) if do is None else [do] if isinstance(do, str) else list(do)
    if found not in _ALWAYS or found not in allowed:
        wanted = " or ".join(allowed)
        remedy = f"write do: {wanted}, or a list of stages and use dacheng run"
        raise UsageError("this is no recipe for it", field="do", value=found, remedy=remedy)
    return parse(expand(values, overrides, name), overrides)


def expand(values: Mapping[str, Any], overrides: Sequence[str] = (), default_name: str = "life") -> dict[str, Any]:
    """The life, as plain data, of a recipe of one stage. A section that only an override names is there too."""
    for key in values:
        if key not in (*_SECTIONS, "do", "name"):
            near = nearest(key, list(_SECTIONS))
            known = f"known here: {', '.join(_SECTIONS)}"
            remedy = f"did you mean {near}? ({known})" if near else known
            raise UsageError("unknown key", field=str(key), value=values[key], remedy=remedy)
    wanted = {*_ALWAYS[values["do"]], *values} | {split_override(override)[0][0] for override in overrides}
    for section, others in _IMPLIED.items():
        if section in wanted:
            wanted |= set(others)
    stages = []
    for section, (do, parents) in _SECTIONS.items():
        if section in wanted:
            own = values.get(section) or {}
            if not isinstance(own, Mapping):
                remedy = f"put its keys under {section}:"
                raise UsageError("a section is a mapping", field=section, value=own, remedy=remedy)
            edges = [parent for parent in parents if parent in wanted]
            stages.append({"name": section, "do": do, **({"from": edges} if edges else {}), **own})
    return {"name": values.get("name", default_name), "stages": stages}
