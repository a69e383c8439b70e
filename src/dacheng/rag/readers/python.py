"""Python by its syntax tree, never imported: what is documented (docstrings), or all that is defined (code)."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

from dacheng.rag.blocks import Block

MAX_BYTES = 4 << 20  # a syntax tree takes about a hundred times as much
_Definition = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_Documented = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_BLANK = re.compile(r"\s+")


def parse(text: str) -> ast.Module | None:
    """The tree of a module; None where it is no Python of this version, or too deep or too large to parse."""
    if len(text) > MAX_BYTES:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the document: not this program's
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def module_name(name: str) -> str:
    """json/decoder.py is json.decoder, json/__init__.py is json."""
    return name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def read_docstrings(tree: ast.Module, text: str, name: str) -> Iterator[Block]:
    """Docstrings of the module, and of its public classes and functions, nested ones included, each after its
    signature. The heading is the qualified name; the lines are those from the definition to the docstring's end."""
    lines = text.splitlines()
    pending: list[tuple[_Documented, str]] = [(tree, module_name(name))]
    while pending:
        node, qualified = pending.pop()
        yield from _documented(node, qualified, lines)
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, _Definition)]
        pending += [(child, f"{qualified}.{child.name}") for child in reversed(inner) if child.name[0] != "_"]


def _documented(node: _Documented, qualified: str, lines: list[str]) -> Iterator[Block]:
    docstring = ast.get_docstring(node)
    if not docstring:
        return
    value = node.body[0].value  # type: ignore[attr-defined]
    found: list[tuple[int, str]] = []
    if not isinstance(node, ast.Module):
        found.append((node.lineno, signature(node, qualified, lines)))
    # get_docstring strips leading and trailing blank lines: its first line is the first that is not blank.
    raw = value.value.expandtabs().splitlines()
    first = value.lineno + next(i for i, line in enumerate(raw) if line.strip())
    # Escapes ("\n" in the source) make more lines than the source has; a line's number never leaves the docstring.
    found += [(min(first + i, value.end_lineno), line) for i, line in enumerate(docstring.splitlines())]
    yield Block("code", qualified, tuple(found))


def signature(node: ast.AST, qualified: str, lines: list[str]) -> str:
    """As written in the source, in one line, under the qualified name: shutil.copytree(src, dst, symlinks=False)."""
    assert isinstance(node, _Definition)
    first = node.body[0]
    head = lines[node.lineno - 1 : first.lineno]
    if first.lineno == node.lineno:
        head = [head[0].encode()[: first.col_offset].decode(errors="ignore")]
    elif len(head) > 1:
        head = head[:-1]
    joined = _BLANK.sub(" ", " ".join(line.split("  #")[0] for line in head)).strip()
    start = joined.find(node.name)
    return qualified + joined[start + len(node.name) :].rstrip(" :").replace("( ", "(")


def read_code(tree: ast.Module, text: str, name: str) -> Iterator[Block]:
    """Every definition with its code; what stands between definitions goes under the name around it."""
    yield from _code(tree, module_name(name), text.splitlines(), 1, text.count("\n") + 1)


def _code(node: _Documented, qualified: str, lines: list[str], first: int, last: int) -> Iterator[Block]:
    at = first
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _Definition):
            continue
        begin = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
        end = child.end_lineno or begin
        if begin < at:  # a second definition in the same line
            continue
        yield from _stretch(qualified, lines, at, begin - 1)
        inner = f"{qualified}.{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from _code(child, inner, lines, begin, end)
        else:
            yield from _stretch(inner, lines, begin, end)
        at = end + 1
    yield from _stretch(qualified, lines, at, last)


def _stretch(heading: str, lines: list[str], first: int, last: int) -> Iterator[Block]:
    found = [(number, lines[number - 1]) for number in range(first, min(last, len(lines)) + 1)]
    while found and not found[0][1].strip():
        found.pop(0)
    while found and not found[-1][1].strip():
        found.pop()
    if found:
        yield Block("code", heading, tuple(found))
