"""Verbs that are one stage of a life: their options become its section, and it is carried out like any recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def carry_out_stage(do: str, section: dict[str, Any], out: Path, json: bool) -> int:
    """Runs the stage `do` with this section into `out`; the exit status."""
    from dacheng.cli.run import carry_out
    from dacheng.life.expand import load_recipe

    return carry_out(load_recipe({"do": do, "name": out.name, do: section}, do=do), out, None, json)


def model_path(name: str) -> str:
    """Of a directory, a GGUF file, or a name from history. Raises DachengError for none of these."""
    from dacheng.cli.models import find_model

    return str(find_model(name))


def said(**options: Any) -> dict[str, Any]:
    """The options that were given; paths as texts."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in options.items() if v is not None}
