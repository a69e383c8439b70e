"""Ctrl-C and SIGTERM: the running step is finished and saved first; a second Ctrl-C ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from dacheng.errors import DachengError


class Interrupted(DachengError):
    """The user, or the system, asked a run to stop; what it had done is saved."""

    exit_code = 130  # 128 + SIGINT, as a shell reports it


class InterruptGuard:
    """Inside `with`, SIGINT and SIGTERM only set `requested`; a second SIGINT raises KeyboardInterrupt as usual.

    Handlers can be set in the main thread only: elsewhere the guard does nothing, and whoever owns that thread decides.
    """

    def __init__(self) -> None:
        self.requested: str | None = None  # the name of the signal
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested == "SIGINT":
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: the handler was not set from Python and cannot be put back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()
