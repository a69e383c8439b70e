"""Tests written as assertions, split so that a program can't pass them by anything but right answers.

`assert f(2) == 3` asks two things: what is f(2), and is that 3? The program under test answers the first, in the
sandbox; the second is decided here, from plain data. What a program prints, redefines (`__eq__`, `abs`, `assert`'s
exception) or does to its interpreter can't make a wrong value right, and what a value is compared with never enters
the sandbox. A call goes in whole, with its arguments: so where Python or a module judges the program's value
(`isinstance(f(2), int)`, `np.allclose(f(2), [3])`) there is nothing left to decide here, and the test is refused.
"""

from __future__ import annotations

import ast
import builtins
import math
import operator
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from dacheng.errors import DachengError

MAX_TESTS = 2000
_SIZE = 1 << 20  # of a list or text that an expectation may make
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
    ast.Is: lambda a, b: a is b, ast.IsNot: lambda a, b: a is not b,
}  # fmt: skip
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_, ast.Invert: operator.invert
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "round": round, "len": len, "sorted": sorted, "set": set, "frozenset": frozenset, "tuple": tuple,
    "list": list, "dict": dict, "sum": sum, "min": min, "max": max, "int": int, "float": float, "bool": bool,
    "str": str, "isclose": math.isclose, "math.isclose": math.isclose, "all": all, "any": any,
}  # fmt: skip


class NotAnAssertion(DachengError):
    """A test that can't be split: statements, loops, comprehensions, names from outside."""


@dataclass(frozen=True, slots=True)
class Assertion:
    """tree: what must hold, as an expression. calls: what the program is asked for, as source, in the order needed."""

    tree: ast.expr
    calls: tuple[str, ...]
    nodes: tuple[ast.expr, ...]

    def holds(self, values: Sequence[Any]) -> bool:
        """Whether it does, given the value of each call. False where deciding raises."""
        known = {id(node): value for node, value in zip(self.nodes, values, strict=True)}
        try:
            return bool(_value(self.tree, known))
        except (ArithmeticError, TypeError, ValueError, LookupError, RecursionError):
            return False


def read_assertions(text: str, entry_point: str | None = None) -> list[Assertion]:
    """The assertions of a test: lines of `assert`, or HumanEval's `def check(candidate):` of nothing else (candidate is
    then `entry_point`); assignments to capitals beside them, docstrings and `check(name)` are passed over.

    Raises NotAnAssertion, naming the line, for anything else.
    """
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotAnAssertion(f"the test does not parse: {error}", field="tests", value=text) from None
    found: list[Assertion] = []
    for statement in body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "check" and len(statement.args.args) == 1:
            candidate = statement.args.args[0].arg
            if entry_point is None:
                raise NotAnAssertion("check(candidate) without the function's name", field="entry_point", value=None)
            for inner in statement.body:
                _read(inner, found, {candidate: entry_point})
        else:
            _read(statement, found, {entry_point: entry_point} if entry_point else {})
    if not found or len(found) > MAX_TESTS:
        raise NotAnAssertion(f"{len(found)} assertions", field="tests", value=text, remedy=f"1 to {MAX_TESTS}")
    return found


def _read(statement: ast.stmt, found: list[Assertion], names: dict[str, str]) -> None:
    if isinstance(statement, ast.Assert):
        trivial = isinstance(statement.test, ast.Constant)  # HumanEval's `assert True, "…"`
        if not trivial or not statement.test.value:  # type: ignore[attr-defined]
            found.append(_split(statement.test, names))
    elif not _says_nothing(statement):
        raise NotAnAssertion("not an assertion", field=f"tests, line {statement.lineno}", value=ast.unparse(statement))


def _says_nothing(statement: ast.stmt) -> bool:
    """A docstring, `pass`, METADATA = …, or the call of check itself."""
    if isinstance(statement, ast.Expr):
        call = statement.value
        named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "check"
        return named or isinstance(call, ast.Constant)
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, ast.Name) and target.id.isupper() for target in statement.targets)
    return isinstance(statement, ast.Pass)


def _split(test: ast.expr, names: dict[str, str]) -> Assertion:
    nodes: list[ast.expr] = []
    _find(test, nodes, _FUNCTIONS.keys() - set(names.values()))
    if any(_judges(node, set(names.values())) for node in nodes):
        raise NotAnAssertion("decided inside of the program", field="tests", value=ast.unparse(test))
    if not nodes:  # the function under test may be called sum or sorted
        _find(test, nodes, set())
    if not nodes:
        raise NotAnAssertion("asks nothing of the program", field="tests", value=ast.unparse(test))
    calls = []
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name):
                inner.id = names.get(inner.id, inner.id)
        calls.append(ast.unparse(node))
    return Assertion(test, tuple(calls), tuple(nodes))


def _find(node: ast.expr, calls: list[ast.expr], ours: Set[str]) -> None:
    """Collects the calls of the program in `node`: all but those of the functions `ours`. Raises for what can neither
    be asked nor decided."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name not in ours or any(
            keyword.arg not in ("rel_tol", "abs_tol", "key", "reverse") for keyword in node.keywords
        ):
            calls.append(node)
            return
        parts = [*node.args, *(keyword.value for keyword in node.keywords)]
    elif isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
    elif isinstance(node, ast.BoolOp):
        parts = node.values
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        parts = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp):
        parts = [node.operand]
    elif isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        parts = node.elts
    elif isinstance(node, ast.Dict) and None not in node.keys:
        parts = [*(key for key in node.keys if key is not None), *node.values]
    elif isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice):
        parts = [node.value, node.slice]
    elif isinstance(node, ast.Constant) and not isinstance(node.value, type(...)):
        parts = []
    else:
        raise NotAnAssertion("can't be decided outside of the program", field="tests", value=ast.unparse(node))
    for part in parts:
        _find(part, calls, ours)


def _judges(call: ast.expr, tested: Set[str]) -> bool:
    """Whether a function of Python's or of a module, and none of `tested`, is given what another call returns."""
    assert isinstance(call, ast.Call)
    function, foreign = call.func, False
    if isinstance(function, ast.Name):
        foreign = function.id in vars(builtins) and function.id not in tested
    elif isinstance(function, ast.Attribute):
        foreign = isinstance(function.value, ast.Name)
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return foreign and any(isinstance(inner, ast.Call) for part in given for inner in ast.walk(part))


def _value(node: ast.expr, known: dict[int, Any]) -> Any:
    if id(node) in known:
        return known[id(node)]
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Call):
        keywords = {keyword.arg: _value(keyword.value, known) for keyword in node.keywords if keyword.arg}
        return _FUNCTIONS[ast.unparse(node.func)](*(_value(argument, known) for argument in node.args), **keywords)
    if isinstance(node, ast.Compare):
        left = _value(node.left, known)
        for kind, right_node in zip(node.ops, node.comparators):
            right = _value(right_node, known)
            if not _COMPARE[type(kind)](left, right):
                return False
            left = right
        return True
    if isinstance(node, ast.BoolOp):
        parts = (_value(part, known) for part in node.values)
        return all(parts) if isinstance(node.op, ast.And) else any(parts)
    if isinstance(node, ast.BinOp):
        return _binary(node, _value(node.left, known), _value(node.right, known))
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_value(node.operand, known))
    if isinstance(node, ast.Subscript):
        return _value(node.value, known)[_value(node.slice, known)]
    if isinstance(node, ast.Dict):
        return {_value(k, known): _value(v, known) for k, v in zip(node.keys, node.values) if k is not None}
    items = [_value(item, known) for item in node.elts]  # type: ignore[attr-defined]
    return {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)](items)  # type: ignore[index]


def _binary(node: ast.BinOp, left: Any, right: Any) -> Any:
    if isinstance(node.op, ast.Mult):  # [0] * 10 ** 12 is refused before it is made
        for one, other in ((left, right), (right, left)):
            if isinstance(one, (str, bytes, list, tuple)) and isinstance(other, int) and len(one) * other > _SIZE:
                raise ValueError("too large")
    if isinstance(node.op, ast.Mod) and isinstance(left, (str, bytes)):  # "%999999999d" is large, too
        raise ValueError("formatting")
    return _BINARY[type(node.op)](left, right)
