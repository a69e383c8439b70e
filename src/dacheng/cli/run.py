"""dacheng run: a life, or what has changed of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dacheng.life.graph import Life


def run(
    recipe: Path,
    *overrides: str,
    out: Path | None = None,
    prices: Path | None = None,
    json: bool = False,
) -> int:
    """Runs a life: stages that are done stay, what changed is made again, what was interrupted goes on.

    Example: dacheng run recipes/life/quickstart.yaml plan.minutes=2

    Parameters
    ----------
    recipe
        YAML: a life (a name and a list of stages), or a recipe of one stage.
    overrides
        stage.key=value, as often as you like.
    out
        Where everything goes; runs/NAME, with the life's name, when left out.
    prices
        Your prices of power, hardware and labour (YAML); assumed ones are marked so.
    json
        One JSON document on stdout: stages, artifacts, metrics, costs.
    """
    from dacheng.life.expand import load_recipe

    return carry_out(load_recipe(recipe, overrides), out, prices, json)


def carry_out(life: Life, out: Path | None, prices: Path | None, json: bool) -> int:
    """Runs a life for a verb: progress on stderr, the result on stdout."""
    from dacheng.cli.console import print_json, reporter, use_threads
    from dacheng.cli.summary import final_lines, stage_line
    from dacheng.ledger import Prices
    from dacheng.life.run import run_life

    use_threads()
    face = reporter()
    width = max(len(node.name) for node in life.nodes)
    result = run_life(
        life,
        out or Path("runs") / life.name,
        reporter=face,
        prices=Prices.load(prices),
        on_stage=stage_line(face, width),
    )
    if json:
        print_json(result.to_dict())
    else:
        print("\n".join(final_lines(result)))
    return 0
