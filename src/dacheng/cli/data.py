"""dacheng data: a corpus, cleaned, split and tokenized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from dacheng.errors import UsageError

app = App(name="data", help="Clean, deduplicate, split and tokenize a corpus.")


@app.command
def run(
    recipe: str | None = None,
    *overrides: str,
    source: str | None = None,
    tokenizer: str | None = None,
    context_length: int | None = None,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Prepares a corpus: documents by split, and with a tokenizer also token shards and their packing.

    Example: dacheng data run --source docs.jsonl --out shards/

    Parameters
    ----------
    recipe
        YAML with do: data and sections data, tokenizer, tokens; or leave it out and name a source.
    overrides
        section.key=value, as often as you like (data.cleaning.profile=web).
    source
        A file (.txt, .jsonl, .json, .parquet), a folder, or python-stdlib.
    tokenizer
        A tokenizer or model to tokenize with: a directory or the name of a run.
    context_length
        Tokens of a row; asks for token shards.
    out
        Where everything goes; runs/NAME when left out.
    json
        One JSON document on stdout: artifacts, figures, what was dropped and why.
    """
    from dacheng.cli.run import carry_out
    from dacheng.life.expand import load_recipe

    if recipe is not None and "=" in recipe and not Path(recipe).exists():
        overrides, recipe = (recipe, *overrides), None
    if (recipe is None) == (source is None):
        remedy = "name a recipe, or --source FILE"
        raise UsageError("one corpus is needed", field="--source", value=source, remedy=remedy)
    values: Any = (
        Path(recipe) if recipe is not None else {"do": "data", "name": _name(str(source)), "data": {"source": source}}
    )
    given = list(overrides)
    if tokenizer is not None:
        from dacheng.cli.models import find_tokenizer

        given.append(f"tokenizer.path='{_quoted(find_tokenizer(tokenizer))}'")
        given.append(f"tokens.context_length={context_length or 512}")
    elif context_length is not None:
        given.append(f"tokens.context_length={context_length}")
    return carry_out(load_recipe(values, given, do="data"), out, None, json)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _name(source: str) -> str:
    """A life's name for a source: letters, digits, - and _ of its file name."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in Path(source).stem)
    return kept.strip("-_")[:60] or "data"
