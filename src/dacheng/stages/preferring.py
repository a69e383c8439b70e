"""What the stages that learn from preferences share: their files, what is held out, and what they say of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError, UsageError
from dacheng.records import Drops
from dacheng.stages.sft import weight_files

if TYPE_CHECKING:
    from dacheng.data.preferences import Preference
    from dacheng.stages.base import StageContext

HELD_OUT = 0.1  # of the prompts, where nothing is said
REMEDY = 'data: [pairs.jsonl], lines of {"prompt": …, "chosen": …, "rejected": …}; see docs/guide/alignment'


def check_files(data: tuple[str, ...], held_out: tuple[str, ...], held_out_fraction: float | None) -> None:
    """Raises UsageError where nothing is to be learnt, or it is not clear what is held out."""
    if not data:
        raise UsageError("nothing to learn from", field="data", value=list(data), remedy=REMEDY)
    if held_out_fraction is None:
        return
    if not 0 <= held_out_fraction < 1:
        raise UsageError("not a fraction", field="held_out_fraction", value=held_out_fraction, remedy="0 to below 1")
    if held_out:
        raise UsageError("what is held out is said twice", field="held_out_fraction", value=held_out_fraction,
                         remedy="leave it out where held_out names files")  # fmt: skip


def hashes_of(models: tuple[str | None, ...], files: tuple[str, ...]) -> dict[str, Any]:
    """For `externals`: of weights and data. Raises DachengError for a file that is not there."""
    from dacheng.formats.safetensors_io import sha256_file

    paths = [path for model in models for path in weight_files(model)] + list(map(Path, files))
    for path in paths:
        if not path.is_file():
            raise DachengError(f"{path} does not exist", field="data", value=str(path), remedy="check the path")
    return {"files": [sha256_file(path) for path in paths]}


def read_sides(
    data: tuple[str, ...], held_out: tuple[str, ...], fraction: float | None, drops: Drops
) -> tuple[list[Preference], list[Preference]]:
    """(to learn from, held out): by files, or a share of the prompts, which is the same for every seed."""
    from dacheng.data.preferences import read_preferences, split_preferences

    read = read_preferences(data, drops)
    if held_out:
        return read, read_preferences(held_out, drops)
    return split_preferences(read, HELD_OUT if fraction is None else fraction)


def tell_drops(made: Mapping[str, Any], unread: Drops, context: StageContext) -> None:
    """On the reporter and in the ledger: what was not learnt from, and why."""
    counted = Drops()
    counted.merge(unread)
    for reason, count in made["dropped"].items():
        counted.dropped[reason] += count
    for reason, count in counted.dropped.items():
        context.reporter.note(f"{count} preferences were left aside: {reason}")
    context.entry.add(drops=counted.to_dict())
