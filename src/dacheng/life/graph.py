"""A life: named stages and which takes whose result. Read from YAML, checked whole before anything runs.

    name: quickstart
    stages:
      - {name: data, do: data, source: python-stdlib}
      - {name: tokenizer, do: tokenizer, from: data, vocab_size: 2048}
      - {name: train, do: train, from: {documents: data, tokenizer: tokenizer}}

`from` is one stage, a list of stages (each goes where its kind is wanted), or a mapping of inputs to stages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dacheng import recipes
from dacheng.errors import UsageError
from dacheng.stages.base import ANY_INPUTS, Stage, find_stage

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_OWN_KEYS = ("name", "do", "from")


@dataclass(frozen=True)
class Node:
    """One stage of a life: `inputs` maps the names the stage knows to the names of the nodes that fill them."""

    name: str
    do: str
    stage: Stage
    inputs: dict[str, str]
    config: Any

    def resolved(self) -> dict[str, Any]:
        """As it stands in a recipe, every default written out."""
        edges = {"from": dict(self.inputs)} if self.inputs else {}
        return {"name": self.name, "do": self.do, **edges, **recipes.to_dict(self.config)}


@dataclass(frozen=True)
class Life:
    """`nodes` in an order in which every stage comes after those it takes from."""

    name: str
    nodes: tuple[Node, ...]

    def resolved(self) -> dict[str, Any]:
        """The whole life as plain data that `parse` reads back."""
        return {"name": self.name, "stages": [node.resolved() for node in self.nodes]}

    @cached_property
    def keys(self) -> dict[str, str]:
        """{node: the fingerprint its result is cached under}: what it does, its resolved configuration, the
        fingerprints of its inputs, the version of its code, and what it reads from outside. Computed once: reading a
        source to hash it takes time."""
        keys: dict[str, str] = {}
        for node in self.nodes:
            externals = getattr(node.stage, "externals", None)
            keys[node.name] = recipes.fingerprint(
                {
                    "do": node.do,
                    "config": recipes.identity(node.config),
                    "parents": {name: keys[parent] for name, parent in node.inputs.items()},
                    "version": node.stage.VERSION,
                    "externals": externals(node.config) if externals else None,
                }
            )
        return keys


def parse(values: Mapping[str, Any], overrides: Sequence[str] = (), default_name: str = "life") -> Life:
    """The life of a mapping; overrides are `stage.section.key=value`.

    Raises UsageError: unknown keys, stages or inputs, two stages of one name, a cycle, a wrong configuration.
    """
    for key in values:
        if key not in ("name", "stages"):
            near = recipes.nearest(key, ["name", "stages"])
            remedy = f"did you mean {near}?" if near else "a life has a name and a list of stages"
            raise UsageError("unknown key", field=str(key), value=values[key], remedy=remedy)
    name = _checked_name(values.get("name", default_name), "name")
    raw = _with_overrides(_by_name(values.get("stages")), overrides)
    stages = {key: find_stage(_text(value, "do", key), f"{key}.do") for key, value in raw.items()}
    nodes = {}
    for key, value in raw.items():
        config = {k: v for k, v in value.items() if k not in _OWN_KEYS}
        inputs = _inputs(key, value.get("from"), stages)
        nodes[key] = Node(key, value["do"], stages[key], inputs, recipes.build(stages[key].Config, config, key))
    return Life(name, tuple(_ordered(nodes)))


def _checked_name(name: Any, field: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        remedy = "use letters, digits, - and _: it becomes the name of a directory"
        raise UsageError("this cannot be a name", field=field, value=name, remedy=remedy)
    return name


def _by_name(stages: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(stages, list) or not stages:
        raise UsageError(
            "a life is a list of stages", field="stages", value=stages, remedy="add `- {name: data, do: data}`"
        )
    found: dict[str, dict[str, Any]] = {}
    for number, stage in enumerate(stages):
        if not isinstance(stage, Mapping):
            raise UsageError(
                "a stage is a mapping", field=f"stages.{number}", value=stage, remedy="give it name and do"
            )
        name = _checked_name(stage.get("name", stage.get("do")), f"stages.{number}.name")
        if name in found:
            remedy = "give one of them another name"
            raise UsageError("two stages have the same name", field=f"stages.{number}.name", value=name, remedy=remedy)
        found[name] = dict(stage)
    return found


def _with_overrides(stages: dict[str, dict[str, Any]], overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    for override in overrides:
        keys, value = recipes.split_override(override)
        if keys[0] not in stages or len(keys) < 2:
            near = recipes.nearest(keys[0], list(stages))
            remedy = f"did you mean {near}? " if near and near != keys[0] else ""
            remedy += f"an override is stage.key=value; the stages: {', '.join(stages)}"
            raise UsageError("this names no key of a stage", field=".".join(keys), value=value, remedy=remedy)
    return recipes.apply_overrides(stages, overrides)


def _text(value: Mapping[str, Any], key: str, stage: str) -> str:
    if not isinstance(value.get(key), str):
        raise UsageError(
            "a stage says what it does", field=f"{stage}.{key}", value=value.get(key), remedy="add `do: train`"
        )
    return value[key]


def _inputs(name: str, given: Any, stages: Mapping[str, Stage]) -> dict[str, str]:
    """{input: stage} of what stands under `from`."""
    wanted, field = stages[name].INPUTS, f"{name}.from"
    given = [given] if isinstance(given, str) else given or []
    if not isinstance(given, (list, Mapping)):
        raise UsageError("wrong type", field=field, value=given, remedy="a stage, a list, or input: stage")
    edges: dict[str, str] = {}
    for key, parent in given.items() if isinstance(given, Mapping) else enumerate(given):
        if parent not in stages:
            near = recipes.nearest(parent, list(stages))
            remedy = f"did you mean {near}?" if near else f"the stages: {', '.join(stages)}"
            raise UsageError("there is no such stage in this life", field=f"{field}.{key}", value=parent, remedy=remedy)
        free = [k for k in wanted if k not in edges]
        slot = str(key) if isinstance(given, Mapping) else _slot(parent, stages[parent].KIND, wanted, free)
        if wanted is not ANY_INPUTS and (
            slot not in wanted or wanted[slot].kind != stages[parent].KIND or slot in edges
        ):
            takes = ", ".join(f"{k}: {v.kind}" for k, v in wanted.items()) or "nothing"
            problem = f"{stages[parent].KIND} from {parent} does not fit here"
            raise UsageError(problem, field=f"{field}.{key}", value=parent, remedy=f"{name} takes {takes}")
        edges[slot] = parent
    for key, wants in wanted.items():
        if wants.required and key not in edges:
            makers = [other for other, made in stages.items() if wants.kind == made.KIND and other != name]
            remedy = f"add from: {{{key}: {makers[0]}}}" if makers else f"add a stage that makes {wants.kind}"
            raise UsageError(f"{name} needs {wants.kind}", field=f"{field}.{key}", remedy=remedy)
    return edges


def _slot(parent: str, kind: str, wanted: Mapping[str, Any], free: Sequence[str]) -> str:
    """The input that a listed stage goes to: the one of its name, else the first free one of its kind."""
    if wanted is ANY_INPUTS or (parent in free and wanted[parent].kind == kind):
        return parent
    return next((key for key in free if wanted[key].kind == kind), parent)


def _ordered(nodes: dict[str, Node]) -> list[Node]:
    """Parents first, otherwise as written (Kahn 1962). UsageError names a cycle."""
    ordered: dict[str, Node] = {}
    while len(ordered) < len(nodes):
        ready = [n for n in nodes.values() if n.name not in ordered and all(p in ordered for p in n.inputs.values())]
        if not ready:
            cycle = " -> ".join(_cycle({k: n for k, n in nodes.items() if k not in ordered}))
            raise UsageError(
                "stages wait for each other", field="from", value=cycle, remedy="remove one of these edges"
            )
        ordered[ready[0].name] = ready[0]
    return list(ordered.values())


def _cycle(waiting: Mapping[str, Node]) -> list[str]:
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(parent for parent in waiting[path[-1]].inputs.values() if parent in waiting))
    return list(reversed(path[path.index(path[-1]) :]))
