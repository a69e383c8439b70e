"""Stages that take no time: they write what they did, and count how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dacheng.errors import DachengError
from dacheng.records import Artifact
from dacheng.stages.base import Input


class Toy:
    """`calls` lists every run as (stage name, config)."""

    VERSION: ClassVar[int] = 1
    KIND = "number"
    INPUTS: ClassVar[dict[str, Input]] = {}
    calls: ClassVar[list[tuple[str, Any]]] = []

    @dataclass(frozen=True, kw_only=True)
    class Config:
        value: int = 1
        fail: bool = False
        interrupt: bool = False
        labels: dict[str, str] = field(default_factory=dict)
        threads: int = field(default=1, metadata={"free": True})

    @classmethod
    def run(cls, config, inputs, out: Path, context) -> Artifact:
        Toy.calls.append((context.name, config))
        total = config.value + sum(int(made.path.read_text()) for made in inputs.values())
        (out / "begun.txt").open("a").write("x")
        context.entry.add(tokens=10)
        if config.interrupt and len((out / "begun.txt").read_text()) == 1:
            raise KeyboardInterrupt
        if config.fail:
            raise DachengError("it failed", field="fail", value=True, remedy="set it to false")
        (out / "total.txt").write_text(str(total))
        return Artifact(cls.KIND, out / "total.txt", metrics={"total": total})


class Add(Toy):
    INPUTS: ClassVar[dict[str, Input]] = {"left": Input("number"), "right": Input("number", required=False)}


class Outside(Toy):
    """Reads a file that is no part of the life."""

    path: ClassVar[Path]

    @classmethod
    def externals(cls, config):
        return {"content": cls.path.read_text()}


class Other(Toy):
    KIND = "other"
