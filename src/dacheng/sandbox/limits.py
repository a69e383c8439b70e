"""What a program may use, and what came of running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dacheng.errors import UsageError

Status = Literal["ok", "error", "timeout", "memory", "killed", "refused"]
MAX_CODE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """seconds: wall clock from the moment the program begins (the interpreter's start is not counted), less the time it
    was ready to run and others had the cores (at most 20 times the limit); and as much CPU time. memory_bytes: address
    space beyond the interpreter's own, of each process. processes: 1 means that the program can start none; with more,
    each thread counts as one of them too. output_bytes: of stdout and of stderr, each.

    Nothing is ever written to disk, whatever the limits. Raises UsageError for a limit that is not positive.
    """

    seconds: float = 5.0
    memory_bytes: int = 256 << 20
    processes: int = 1
    output_bytes: int = 64 << 10

    def __post_init__(self) -> None:
        for name, most in (
            ("seconds", 86_400),
            ("memory_bytes", 1 << 44),
            ("processes", 256),
            ("output_bytes", 1 << 30),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
                raise UsageError(
                    "not a limit", field=f"limits.{name}", value=value, remedy=f"more than 0, at most {most}"
                )


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """status: "ok" (exit code 0), "error" (another exit code: an uncaught exception, sys.exit), "timeout", "memory"
    (an uncaught MemoryError), "killed" (a signal, or more output than allowed), "refused" (it was not run; stderr says
    why). exit_code: minus the signal's number where one ended it; None where it was not run. seconds: wall clock of the
    program itself. stdout, stderr: UTF-8, wrong bytes replaced, cut at the limit.

    The status comes from the program's own exit: a program can claim "ok" or "memory". Judge by what it computed.
    """

    status: Status
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.status == "ok"
