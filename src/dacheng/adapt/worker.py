"""python -m dacheng.adapt.worker CONFIG: the training process (see process.TrainerProcess).

With --with-parent it ends when its standard input is closed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dacheng.adapt.worker_config import WorkerConfig

PR_SET_PDEATHSIG = 1
WITH_PARENT = "--with-parent"


def end_with_parent() -> None:
    """Ends this process when the one that holds the other end of stdin is gone.

    The kernel sends SIGCONT when the parent (its thread that started us) ends: one that is paused wakes up and sees
    the closed pipe; to one that runs it says nothing.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0)
    threading.Thread(target=_watch, name="parent-watch", daemon=True).start()


def _watch() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)  # nothing to tidy: a checkpoint is whole or not there


def main(arguments: list[str]) -> int:
    from dacheng.adapt.worker_config import ERROR, WorkerConfig
    from dacheng.errors import DachengError
    from dacheng.formats.json_files import write_json

    if WITH_PARENT in arguments:
        end_with_parent()
        arguments = [argument for argument in arguments if argument != WITH_PARENT]
    if len(arguments) != 1:
        print(f"usage: python -m dacheng.adapt.worker CONFIG [{WITH_PARENT}]", file=sys.stderr)
        return 2
    config = None
    try:
        config = WorkerConfig.read(Path(arguments[0]))
        _train(config)
    except DachengError as error:
        if config is not None:
            value = error.value if isinstance(error.value, str | int | float | None) else repr(error.value)
            told = {"problem": error.problem, "field": error.field, "value": value, "remedy": error.remedy}
            folder = Path(config.out) / "training"
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / ERROR, told)
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _train(config: WorkerConfig) -> None:
    from dacheng.adapt.training import train_adapter
    from dacheng.data.chats import read_chats
    from dacheng.machine import set_threads
    from dacheng.records import Drops

    if config.train.threads is None and not os.environ.get("OMP_NUM_THREADS"):
        set_threads(None)
    unread = Drops()
    examples = list(read_chats([config.examples], unread))
    held_out = list(read_chats([config.held_out], unread)) if config.held_out is not None else []
    result = train_adapter(config.base, examples, Path(config.out), config.train, held_out=held_out)
    print(f"{result.steps} steps, {result.tokens_per_s:.0f} tokens/s, "
          f"loss {result.loss_before:.4f} -> {result.loss_after:.4f}")  # fmt: skip
    if unread.dropped:
        print(f"left aside: {dict(unread.dropped)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
