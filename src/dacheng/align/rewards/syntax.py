"""Code that parses: `ast.parse` accepts it. Nothing is compiled or run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dacheng.align.rewards.base import Sample
from dacheng.evaluate.code import kept_share, why_not

Fenced = Literal["auto", "never", "required"]
_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*[Pp]?[Yy]?\w*[ \t]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)


def code_of(response: str, fenced: Fenced = "auto") -> str | None:
    """The program in a response: its last fenced block where there is one, else the response itself ("auto"). None
    where a block is required and there is none."""
    if fenced == "never":
        return response
    blocks = _FENCE.findall(response)
    if blocks:
        return blocks[-1][1]
    return response if fenced == "auto" else None


@dataclass(frozen=True, kw_only=True)
class SyntaxReward:
    """Is it Python? See evaluate.code for what counts: a completion needs a code line of its own.

    measure: "parse": 1 where the whole parses, else 0. "kept_lines": the share of code lines in the longest beginning
    that parses, which gives a gradient where hardly anything parses whole. with_prompt: the program is prompt and
    response together (continuing a function).
    """

    name: str = "ast"
    measure: Literal["parse", "kept_lines"] = "parse"
    with_prompt: bool = True
    fenced: Fenced = "never"

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> float:
        code = code_of(sample.response, self.fenced)
        if code is None or not any(_is_code(line) for line in code.split("\n")):
            return 0.0
        prompt = sample.prompt if self.with_prompt else ""
        if self.measure == "kept_lines":
            return kept_share(prompt, code)
        return float(why_not(prompt + code) is None)


def _is_code(line: str) -> bool:
    stripped = line.strip()
    return bool(stripped) and not stripped.startswith("#")
