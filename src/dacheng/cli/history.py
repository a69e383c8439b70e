"""dacheng history: what was run, where it is, and how good it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dacheng.life.history import Run


def history(name: str | None = None, *, everything: bool = False, limit: int = 20, json: bool = False) -> int:
    """Lists runs, newest last. The name of a run that made a model can be given as --model.

    Example: dacheng history

    Parameters
    ----------
    name
        Only runs of this name.
    everything
        Also earlier runs into the same directory, and those whose directory is gone.
    limit
        How many of the newest to show; 0 for all.
    json
        One JSON document on stdout.
    """
    from dacheng.cli.console import print_json
    from dacheng.life.history import history_path, runs

    found, unreadable = runs()
    found = [run for run in found if name is None or run.name == name]
    shown = found if everything else _newest_of_each(found)
    hidden = len(found) - len(shown)
    shown = shown[-limit:] if limit > 0 else shown
    if json:
        print_json({"file": history_path(), "runs": [_plain(run) for run in shown], "unreadable_lines": unreadable})
        return 0
    for run in shown:
        mark = "" if run.exists else "  (gone)"
        figures = "  ".join(f"{key} {value:.4g}" for key, value in _headline(run.metrics).items())
        print(f"{run.when[:16].replace('T', ' ')}  {run.status:<11}  {run.name}  {run.path}{mark}  {figures}".rstrip())
    if not shown:
        print("nothing was run yet; begin with: dacheng run recipes/life/quickstart.yaml")
    if hidden:
        print(f"({hidden} earlier or gone: --everything shows them)")
    if unreadable:
        print(f"({unreadable} lines of {history_path()} could not be read)")
    return 0


def _newest_of_each(found: list[Run]) -> list[Run]:
    newest = {run.path: run for run in found}
    return [run for run in found if newest[run.path] is run and run.exists]


def _plain(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": run.path,
        "when": run.when,
        "status": run.status,
        "exists": run.exists,
        "model": run.model,
        "metrics": run.metrics,
    }


def _headline(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The one or two figures that a list has room for."""
    wanted = ("bits_per_byte", "loss")
    found = {key: value for key, value in metrics.items() if key.rpartition(".")[2] in wanted}
    return dict(list(found.items())[:2])
