"""Plain data out of the sandbox: what a program's calls gave, as JSON that keeps int and float, list and tuple apart.

HARNESS runs inside, DECODE outside. Only exact builtin types pass, so no object of the program's own reaches us.
"""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 50

HARNESS = """
import json as _json, sys as _sys
def _plain(x, depth=0):
    kind = type(x)
    if depth > 50: raise TypeError("nested too deeply")
    if x is None: return ["n"]
    if kind is bool: return ["b", x]
    if kind is int: return ["i", hex(x)]
    if kind is float: return ["f", x.hex()]
    if kind is complex: return ["c", x.real.hex(), x.imag.hex()]
    if kind is str: return ["s", x]
    if kind in (bytes, bytearray): return ["y", x.hex()]
    names = {list: "l", tuple: "t", set: "e", frozenset: "z"}
    if kind in names: return [names[kind], [_plain(item, depth + 1) for item in x]]
    if isinstance(x, dict): return ["d", [[_plain(k, depth + 1), _plain(v, depth + 1)] for k, v in dict.items(x)]]
    if isinstance(x, (list, tuple)): return ["l" if isinstance(x, list) else "t", [_plain(i, depth + 1) for i in x]]
    if isinstance(x, (int, float, str)): return _plain(kind.__mro__[-2](x), depth + 1)
    raise TypeError("no plain data: " + kind.__name__)
def _ask(request, out):
    space = {"__name__": "__candidate__"}
    try:
        exec(compile(request["code"], "<program>", "exec"), space)
    except BaseException as error:
        out.write(_json.dumps({"at": -1, "error": type(error).__name__ + ": " + str(error)[:200]}) + "\\n")
        return
    for at, call in request["calls"]:
        try:
            line = {"at": at, "value": _plain(eval(compile(call, "<test>", "eval"), space))}
        except BaseException as error:
            line = {"at": at, "error": type(error).__name__ + ": " + str(error)[:200]}
        out.write(_json.dumps(line) + "\\n")
        out.flush()
_out, _sys.stdout = _sys.stdout, open("/dev/null", "w")
_ask(_json.loads(_sys.stdin.readline()), _out)
_out.flush()
"""


class Wrong(Exception):
    """What came out is no plain data."""


def decode(value: Any, depth: int = 0) -> Any:
    """The value that `_plain` wrote. Raises Wrong for anything else: a program can write to the same pipe."""
    try:
        kind, *rest = value
        if depth > MAX_DEPTH:
            raise Wrong
        match kind:
            case "n":
                return None
            case "b" if rest[0] is True or rest[0] is False:
                return rest[0]
            case "i":
                return int(rest[0], 16)
            case "f":
                return float.fromhex(rest[0])
            case "c":
                return complex(float.fromhex(rest[0]), float.fromhex(rest[1]))
            case "s" if isinstance(rest[0], str):
                return rest[0]
            case "y":
                return bytes.fromhex(rest[0])
            case "l" | "t" | "e" | "z":
                makers = {"l": list, "t": tuple, "e": set, "z": frozenset}
                return makers[kind](decode(item, depth + 1) for item in rest[0])
            case "d":
                return {decode(k, depth + 1): decode(v, depth + 1) for k, v in rest[0]}
    except (TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise Wrong from error
    raise Wrong


def read_answers(stdout: str) -> dict[int, Any]:
    """Number of the call -> its value, of the lines that are whole. A call that raised has none. The first answer to
    a call counts."""
    answers: dict[int, Any] = {}
    for line in stdout.splitlines():
        try:
            found = json.loads(line)
            at = found["at"] if isinstance(found, dict) else None
            if isinstance(at, int) and at >= 0 and "value" in found and at not in answers:
                answers[at] = decode(found["value"])
        except (ValueError, KeyError, Wrong, RecursionError):
            continue
    return answers
