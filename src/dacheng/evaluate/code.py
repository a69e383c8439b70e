"""Is it Python? The share of completions with which a program parses, and prompts taken from held-out source files.

Parsing is all that happens: nothing is compiled or run. It measures syntax and says nothing of what a program does.
"""

from __future__ import annotations

import ast
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dacheng.errors import UsageError
from dacheng.evaluate.intervals import bootstrap_mean, wilson

MAX_CHARACTERS = 100_000  # of prompt and completion together: parsing is linear, but not a reason to wait
MAX_LINES = 400  # of a completion: each may be a parse of the whole


def parse_share(prompts: Sequence[str], completions: Sequence[str], *, level: float = 0.95) -> dict[str, Any]:
    """How many of the programs prompt + completion are Python.

    A completion counts in any measure only if it has a code line (not blank, not a comment alone): an empty one would
    parse with every prompt. The prompts should parse by themselves (those of `make_prompts` do).
    - parse: `ast.parse` accepts the whole. Hard on completions that were cut off at max_tokens.
    - parse_trimmed: it accepts prompt + the first k lines of the completion for some k that takes in a code line: the
      last lines may be cut off or wrong. The fair measure where completions are truncated, and an easy one.
    - kept_lines: with the largest such k (0 if none), code lines among the k over all code lines of the completion;
      the mean over all completions. Tells one good line followed by rubbish from a good page.

    Returns n; parse, parse_trimmed, each with _low and _high (Wilson at `level`); kept_lines with _low and _high
    (bootstrap, from two completions on); reasons: why the whole was not accepted, and how often; prompts_unparsed.
    Raises UsageError for no completions, or as many prompts as not.
    """
    if len(prompts) != len(completions) or not completions:
        raise UsageError(
            "one completion per prompt, and at least one",
            field="completions",
            value=[len(prompts), len(completions)],
            remedy="pass one for each prompt",
        )
    reasons: Counter[str] = Counter()
    whole, trimmed, unparsed = 0, 0, 0
    kept: list[float] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        unparsed += why_not(prompt) is not None
        reason = _why_not_completed(prompt, completion)
        if reason is None:
            whole += 1
        else:
            reasons[reason] += 1
        kept.append(1.0 if reason is None else kept_share(prompt, completion))
        trimmed += kept[-1] > 0
    n = len(completions)
    result: dict[str, Any] = {"n": n}
    for name, count in (("parse", whole), ("parse_trimmed", trimmed)):
        interval = wilson(count, n, level=level)
        result |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    result["kept_lines"] = sum(kept) / n
    if n >= 2:
        spread = bootstrap_mean(kept, level=level)
        result |= {"kept_lines_low": spread.low, "kept_lines_high": spread.high}
    return result | {"reasons": dict(reasons.most_common()), "prompts_unparsed": unparsed}


def why_not(program: str) -> str | None:
    """None if `ast.parse` accepts the program, else a short reason. Never raises, whatever the text."""
    if len(program) > MAX_CHARACTERS:
        return "too long"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes, "is" with a literal: still Python
            ast.parse(program)
    except RecursionError:
        return "nested too deeply"
    except MemoryError:  # the parser's own stack limit, not the machine's memory
        return "nested too deeply"
    except UnicodeEncodeError:
        return "not encodable"
    except (SyntaxError, ValueError) as error:
        text = str(error)
        if "null byte" in text:
            return "null byte"
        if "too many nested parentheses" in text or "too deeply" in text or "too many statically nested" in text:
            return "nested too deeply"
        return type(error).__name__
    return None


def kept_share(prompt: str, completion: str) -> float:
    """Code lines of the longest run of the completion's first lines that parses behind the prompt, over all of them.

    0 where no such run takes in a code line, and where the completion has more than MAX_LINES lines.
    """
    lines = completion.split("\n")
    code = [index for index, line in enumerate(lines) if _is_code(line)]
    if not code or len(lines) > MAX_LINES:
        return 0.0
    for last in reversed(code):  # the lines between two code lines neither help nor hurt
        if why_not(prompt + "\n".join(lines[: last + 1]) + "\n") is None:
            return (code.index(last) + 1) / len(code)
    return 0.0


def make_prompts(
    texts: Iterable[str], n: int, seed: int, accept: Callable[[str], bool] = lambda prompt: True
) -> list[str]:
    """n of the `headers` of source files. The draw is a function of texts, n and seed. Raises UsageError where there
    are fewer than n."""
    files = 0

    def counted() -> Iterable[str]:
        nonlocal files
        for text in texts:
            files += 1
            yield text

    found = headers(counted(), accept)
    if len(found) < n:
        raise UsageError(
            f"{files} texts have {len(found)} different function headers",
            field="n",
            value=n,
            remedy=f"ask for {len(found)} at most, or give more texts",
        )
    return random.Random(seed).sample(found, n)


def headers(texts: Iterable[str], accept: Callable[[str], bool] = lambda prompt: True) -> list[str]:
    """Different function headers from source files: the `def` and its docstring, or the `def` and a first statement.

    Only functions at a file's top level with more in them than that, whose first statement is a simple one; each prompt
    ends a line and parses by itself. Files that don't parse have none. In the order of the texts. accept: whether a
    prompt can be used, such as by its length in tokens.
    """
    found: dict[str, None] = {}
    for text in texts:
        if why_not(text) is not None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
        # ast counts lines at \n and \r alone; str.splitlines would also split at form feeds
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and len(node.body) > 1:
                prompt = _header(node, lines)
                if prompt is not None and accept(prompt):
                    found.setdefault(prompt)
    return list(found)


def _header(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str | None:
    """The lines from `def` to the end of the first statement, if that ends them and makes a program."""
    first, second = node.body[0], node.body[1]
    assert first.end_lineno is not None
    if hasattr(first, "body") or second.lineno <= first.end_lineno or first.lineno == node.lineno:
        return None
    header = "\n".join(lines[node.lineno - 1 : first.end_lineno]) + "\n"
    return header if why_not(header) is None else None


def parses(prompt: str, completion: str) -> bool:
    """Whether prompt and completion are Python together, and the completion has a code line of its own."""
    return _why_not_completed(prompt, completion) is None


def code_lines(text: str) -> int:
    """Lines that are neither blank nor a comment alone."""
    return sum(map(_is_code, text.split("\n")))


def _why_not_completed(prompt: str, completion: str) -> str | None:
    if not any(_is_code(line) for line in completion.split("\n")):
        return "no code line"
    return why_not(prompt + completion)


def _is_code(line: str) -> bool:
    stripped = line.strip()
    return bool(stripped) and not stripped.startswith("#")
