"""What the stages that learn from preferences share: their files, and what is held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from dacheng.errors import UsageError

if TYPE_CHECKING:
    from dacheng.data.preferences import Preference
    from dacheng.records import Drops
    from dacheng.stages.base import Reporter, Task

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


def read_sides(
    data: tuple[str, ...], held_out: tuple[str, ...], fraction: float | None, drops: Drops
) -> tuple[list[Preference], list[Preference]]:
    """(to learn from, held out): by files, or a share of the prompts, which is the same for every seed."""
    from dacheng.data.preferences import read_preferences, split_preferences

    read = read_preferences(data, drops)
    if held_out:
        return read, read_preferences(held_out, drops)
    return split_preferences(read, HELD_OUT if fraction is None else fraction)


@contextmanager
def counted(reporter: Reporter, description: str) -> Iterator[Callable[[int, int], None]]:
    """Of a part of what is done inside: a function of (done, total) that shows a bar from its first call until all is
    done, so that what comes after has the screen and its own seconds."""
    with ExitStack() as stack:
        shown: list[Task] = []

        def progress(done: int, total: int) -> None:
            if not shown:
                shown.append(stack.enter_context(reporter.task(description, total)))
            shown[0].update(done, total=total)
            if done >= total:
                stack.close()

        yield progress
