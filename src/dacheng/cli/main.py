"""The entry point: finds the verb, prints errors without a traceback, and turns them into exit codes.

0 done, 1 failed, 2 wrong usage, 130 interrupted. Imports nothing heavy: `--help` must answer at once.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any

from dacheng import __version__
from dacheng.cli.verbs import VERBS, overview
from dacheng.errors import DachengError, UsageError

if TYPE_CHECKING:
    from cyclopts import App

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
RESUMABLE = (  # the same command goes on from what these leave
    "run", "train", "data", "import", "rag index", "adapt", "align prefer", "align reward", "compress quantize",
    "compress sweep", "compress prune", "compress distil",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs one command line (None: the process's own) and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words in ([], ["--help"], ["-h"], ["help"], ["--all"], ["--all", "--help"], ["--help", "--all"]):
        print(overview("--all" in words))
        return 0
    if words == ["--version"]:
        print(__version__)
        return 0
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _dispatch(words)
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            traceback.print_exc()
        return _report(error, words)


def _dispatch(words: list[str]) -> int:
    if words[0] not in VERBS:
        from dacheng.recipes import nearest

        near = nearest(words[0], list(VERBS))
        remedy = f"did you mean {near}? " if near else ""
        raise UsageError(
            "there is no such verb", field="verb", value=words[0], remedy=remedy + "dacheng --all shows them"
        )
    from cyclopts import CycloptsError

    app = application()
    try:
        code = app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        said = " ".join(["dacheng", *app.parse_commands(words)[0]])
        example = VERBS[words[0]].example
        remedy = f"{said} --help" + (f"; for example: {example}" if f"{example} ".startswith(f"{said} ") else "")
        raise UsageError(str(error).strip(), remedy=remedy) from error
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def application() -> App:
    """The cyclopts application; a verb's module is imported when the verb is used."""
    from cyclopts import App, Parameter

    app = App(
        name="dacheng",
        result_action="return_value",
        default_parameter=Parameter(negative=""),
        suppress_keyboard_interrupt=False,  # ours says how to go on
    )
    for name, verb in VERBS.items():
        app.command(verb.target, name=name)
    return app


def _terminate(number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _report(error: BaseException, words: list[str]) -> int:
    """Says what went wrong on stderr (and as JSON on stdout, where that was asked for) and returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if isinstance(error, BrokenPipeError):  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    known = _as_dacheng_error(error)
    interrupted = isinstance(error, KeyboardInterrupt) or known.exit_code == INTERRUPTED
    code = INTERRUPTED if interrupted else known.exit_code
    lines = [known.problem if interrupted else f"error: {known}"]
    lines += [f"  {note}" for note in getattr(error, "__notes__", ())]
    if code != UsageError.exit_code and not {words[0], " ".join(words[:2])}.isdisjoint(RESUMABLE):
        lines += ["what is done is kept; go on with", f"  {shlex.join(['dacheng', *words])}"]
    print("\n".join(lines), file=sys.stderr, flush=True)
    if "--json" in words:
        told = {"problem": known.problem, "field": known.field, "value": known.value, "remedy": known.remedy}
        print(json.dumps({"error": told, "exit_code": code}, default=str))
    return code


def _as_dacheng_error(error: BaseException) -> DachengError:
    if isinstance(error, DachengError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return DachengError("interrupted")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DachengError("the disk is full", field="path", value=error.filename, remedy="free some space")
    if isinstance(error, OSError) and error.filename is not None:
        return DachengError(f"{error.strerror}", field="path", value=str(error.filename), remedy="check the path")
    if isinstance(error, MemoryError):
        return DachengError("the memory is exhausted", remedy="use a smaller model, batch or context")
    problem = f"this should not have happened: {type(error).__name__}: {error}"
    return DachengError(problem, remedy="run it again with --debug for the traceback, and report it")
