"""Exact-match mathematics: the final answer is taken out of a response and compared as a number.

Where answers come from: the last \\boxed{…} (MATH, Hendrycks et al. 2021), the text after "####" (GSM8K, Cobbe et al.
2021), "the answer is …", "答案是…", or the last number. Two answers are equal as exact numbers (1/2, 0.5, \\frac{1}{2},
50/100), part by part in brackets, else as text without spaces and LaTeX dress.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from dacheng.align.rewards.base import Sample
from dacheng.align.rewards.fields import field_of
from dacheng.align.tools.calculator import NotArithmetic, Number, calculate

Extract = Literal["auto", "boxed", "hashes", "phrase", "number", "whole"]
MAX_ANSWER = 1000
_NUMBER = re.compile(r"(?<![\w.])[-−]?[$£€¥]?\d+(?:,\d{3})*(?:\.\d+)?(?:\s*/\s*\d+)?(?:[eE][+-]?\d+)?%?")
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(r"(?:answer(?:\s+is|\s*[:=])|答案\s*(?:是|为|：|:))\s*:?\s*([^\n]+)", re.IGNORECASE)
_GROUPED = re.compile(r"(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)")
_DRESS = re.compile(
    r"\\(?:left|right|displaystyle|,|!|;|:|quad|qquad|mathrm|mathbf|textbf)(?![a-zA-Z])|\\[()\[\]]|[$£€¥]|\\?%|°|\^\{?\\circ\}?"
)
_TEXT = re.compile(r"\\(?:text|mbox|textrm)\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_ROOT = re.compile(r"\\sqrt\s*(?:\{([^{}]*)\}|(\d))")
_MIXED = re.compile(r"^(-?)(\d+) (\d+)/(\d+)$")
_NAMED = re.compile(r"^[a-zA-Z]\w*\s*=\s*")
_UNIT = re.compile(r"^(-?[\d.,/ ]*\d)(?![eE][+-]?\d)\s*[a-zA-Z\u4e00-\u9fff][a-zA-Z\u4e00-\u9fff^\d ]*$")


def final_answer(text: str, extract: Extract = "auto") -> str | None:
    """The answer that a response ends with, None where it has none. auto: the first of boxed, hashes, phrase, number
    that finds one."""
    if extract == "whole":
        return text.strip()[:MAX_ANSWER] or None
    ways = {"boxed": _boxed, "hashes": _after_hashes, "phrase": _after_phrase, "number": _last_number}
    for name, way in ways.items():
        if extract in (name, "auto"):
            found = way(text)
            if found is not None and found.strip():
                return found.strip()[:MAX_ANSWER]
    return None


def same_answer(given: str, accepted: str, tolerance: float = 0.0) -> bool:
    """Whether two answers are equal. tolerance: relative, for numbers; 0 compares exactly."""
    one, other = plain(given), plain(accepted)
    if one.replace(" ", "") == other.replace(" ", ""):
        return bool(one)
    first, second = _parts(one), _parts(other)
    if first is not None and second is not None:
        brackets, parts = first
        return (
            brackets == second[0]
            and len(parts) == len(second[1])
            and all(same_answer(a, b, tolerance) for a, b in zip(parts, second[1]))
        )
    a, b = number(one), number(other)
    if a is None or b is None:
        return False
    if tolerance or isinstance(a, float) or isinstance(b, float):
        a, b = Fraction(a), Fraction(b)  # as floats, what is above 1.8e308 could not be compared
        return abs(a - b) <= max(Fraction(max(tolerance, 1e-9)) * max(abs(a), abs(b)), Fraction(1e-12))
    return a == b


def plain(text: str) -> str:
    """An answer without its dress: LaTeX for print, currency, per cent signs, thousands' commas, spaces, "x =", a final
    full stop."""
    text = text.strip().rstrip(".。").strip("*`").strip()
    text = _TEXT.sub(lambda match: f" {match[1]} ", text)
    text = _DRESS.sub("", text)
    for _ in range(4):  # the innermost first
        text = _FRACTION.sub(lambda m: f"(({m[1] or m[2]})/({m[3] or m[4]}))", text)
        text = _ROOT.sub(lambda m: f"sqrt({m[1] or m[2]})", text)
    text = text.replace("\\cdot", "*").replace("\\times", "*").replace("\\div", "/").replace("\\pi", "pi")
    text = text.replace("\\{", "{").replace("\\}", "}").replace("−", "-")
    text = _GROUPED.sub(lambda match: match[0].replace(",", ""), text)
    text = re.sub(r"\s+", " ", _NAMED.sub("", text.strip())).strip().rstrip(".")
    unit = _UNIT.match(text)
    return unit[1].strip() if unit else text


def number(text: str) -> Number | None:
    """The value of plain text as arithmetic, None where it is none."""
    mixed = _MIXED.match(text)
    if mixed:
        text = f"{mixed[1]}({mixed[2]}+{mixed[3]}/{mixed[4]})"
    if not text or len(text) > 200 or not any(character.isdigit() for character in text):
        return None
    try:
        return calculate(text.replace("{", "(").replace("}", ")"))
    except NotArithmetic:
        return None


@dataclass(frozen=True, kw_only=True)
class ExactReward:
    """`right` where the response's final answer equals meta[answer] (a text, a number, or a list of accepted ones),
    `wrong` where not, `missing` where there is no answer in the response (None: as `wrong`). None where the sample's
    meta has no such field."""

    name: str = "exact"
    answer: str = "answer"
    extract: Extract = "auto"
    tolerance: float = 0.0
    right: float = 1.0
    wrong: float = 0.0
    missing: float | None = None

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> float | None:
        accepted = field_of(sample, self.answer)
        if accepted is None:
            return None
        given = final_answer(sample.response, self.extract)
        if given is None:
            return self.wrong if self.missing is None else self.missing
        answers = accepted if isinstance(accepted, (list, tuple)) else [accepted]
        # a gold answer may be a whole worked solution, as GSM8K's are
        wanted = [final_answer(str(a), "auto") if "####" in str(a) or "\\boxed" in str(a) else str(a) for a in answers]
        return self.right if any(same_answer(given, a, self.tolerance) for a in wanted if a) else self.wrong


def _boxed(text: str) -> str | None:
    """What is in the last \\boxed{…} or \\fbox{…}, with its brackets balanced; the rest of the line for "\\boxed 5"."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].partition("x")[2] if text.startswith("\\fbox", start) else text[start + len("\\boxed") :]
    rest = rest.lstrip()
    if not rest.startswith("{"):
        return rest.partition("$")[0].partition("\n")[0]
    depth = 0
    for index, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:index]
    return None


def _after_hashes(text: str) -> str | None:
    found = _HASHES.findall(text)
    return found[-1] if found else None


def _after_phrase(text: str) -> str | None:
    """A number where the phrase's rest begins with one, else the rest up to the sentence's end."""
    found = _PHRASE.findall(text)
    if not found:
        return None
    rest = found[-1].replace("**", "").strip().strip("*$ ")
    first = _NUMBER.match(rest)
    if first and not re.match(r"\s*[+*^(,\\]", rest[first.end() :]):
        return first[0]
    ends = r"(?<!\d)\.(?!\d)|\.\s|[。;；]" + ("" if rest[:1] in "([{\\" else r"|,\s")
    return re.split(ends, rest)[0]


def _last_number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def _parts(text: str) -> tuple[str, list[str]] | None:
    """("()", ["1", "2"]) of "(1, 2)"; None for what is no tuple, interval or set."""
    if len(text) < 3 or text[0] not in "([{" or text[-1] not in ")]}" or "," not in text:
        return None
    parts, depth, start = [], 0, 1
    for index, character in enumerate(text[1:-1], 1):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return text[0] + text[-1], [*parts, text[start:-1]]
