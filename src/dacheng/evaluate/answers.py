"""How good answers from documents are: right, cited right, abstained right, nothing invented; each with its interval.

An accepted answer must stand in the text as whole words, letter case, white space and punctuation aside. Naming many
things is no way to be right: of a text longer than MAX_WORDS words or with more than MAX_NAMES different program names
that the question does not have, nothing counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from dacheng.evaluate.intervals import Interval, bootstrap_mean, paired_difference

MAX_WORDS = 60
MAX_NAMES = 3
_HAN_WORD = 0.4  # words that one Han character counts as
_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_MARK = re.compile(r"\s*\[\d{1,3}\]")
_WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+(?:[.'_-][^\W{_HAN}]+)*")
_NAME = re.compile(
    r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|[A-Za-z]\w*_\w+|_+[A-Za-z]\w+|[A-Za-z]*[a-z0-9][A-Z]\w*|[A-Za-z_]\w*(?=\()"
)
_CAPITAL = re.compile(r"(?<![.!?:\n] )(?<!^)(?<![\w.])[A-Z][a-z][\w-]*")
_TITLE = re.compile(r"《([^》]{1,40})》")
_NUMBER = re.compile(rf"(?<![^\W{_HAN}])(?<!\.)\d+(?:[.,]\d+)*(?![^\W{_HAN}])")


class AskedQuestion(Protocol):
    """What is used of dacheng.rag.questions.Question."""

    @property
    def question(self) -> str: ...
    @property
    def answers(self) -> tuple[str, ...]: ...
    @property
    def passages(self) -> tuple[str, ...]: ...


class GivenAnswer(Protocol):
    """What is used of dacheng.rag.answer.Answer."""

    text: str
    abstained: bool
    gate_score: float
    seconds: float

    @property
    def cited_keys(self) -> list[str]: ...
    @property
    def shown_text(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one answer. right: an accepted answer was given; for a question without one, that the answer was to abstain.
    cited_right: every citation is of a passage that holds the answer; None where nothing is cited. abstained_right:
    abstained where, and only where, there is no answer. invented: names and numbers that neither the sources shown nor
    the question have."""

    answerable: bool
    right: bool
    cited_right: bool | None
    abstained: bool
    abstained_right: bool
    gate_score: float
    seconds: float
    invented: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def score_answer(answer: GivenAnswer, question: AskedQuestion) -> Scores:
    """See the module's head for what counts as right."""
    answerable = bool(question.answers)
    given = not answer.abstained
    right = given and says_any(answer.text, question.answers, question.question) if answerable else answer.abstained
    cited = answer.cited_keys if given else []
    return Scores(
        answerable=answerable,
        right=right,
        cited_right=all(key in question.passages for key in cited) if cited else None,
        abstained=answer.abstained,
        abstained_right=answer.abstained != answerable,
        gate_score=answer.gate_score,
        seconds=answer.seconds,
        invented=invented_names(answer.text, f"{answer.shown_text}\n{question.question}") if given else [],
    )


def says_any(text: str, accepted: Sequence[str], question: str = "") -> bool:
    """Whether a text gives one of the accepted answers."""
    text = _MARK.sub("", text)
    if sum(_HAN_WORD if re.match(f"[{_HAN}]", word) else 1 for word in _WORD.findall(text)) > MAX_WORDS:
        return False
    asked = {name.rpartition(".")[2].casefold() for name in _NAME.findall(question)} | {question.casefold()}
    named = {name.rpartition(".")[2].casefold() for name in _NAME.findall(text)}
    if len({name for name in named if name not in asked and name not in question.casefold()}) > MAX_NAMES:
        return False
    said = _normal(text)
    return any(_contains(said, _normal(answer)) for answer in accepted)


def invented_names(text: str, known: str) -> list[str]:
    """Program names, capitalised names, titles and numbers in `text` that `known` does not have, each once."""
    text = _MARK.sub("", text)
    found = [*_NAME.findall(text), *_CAPITAL.findall(text), *_TITLE.findall(text), *_NUMBER.findall(text)]
    said = _normal(known)
    return [name for name in dict.fromkeys(found) if not _contains(said, _normal(name))]


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Area under the ROC curve: how often a positive's score is above a negative's, ties by half (Mann-Whitney U over
    both counts). None where one class is empty."""
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    n_positive, n_negative = int(labels.sum()), int((~labels).sum())
    if not n_positive or not n_negative:
        return None
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[labels].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def columns(scores: Sequence[Scores]) -> dict[str, list[float]]:
    """Name of a figure -> its value for each answer that it is a figure of."""
    return {
        "right": [float(s.right) for s in scores if s.answerable],
        "all_right": [float(s.right) for s in scores],
        "cited_right": [float(s.cited_right) for s in scores if s.cited_right is not None],
        "answered": [float(not s.abstained) for s in scores if s.answerable],
        "abstained": [float(s.abstained) for s in scores if not s.answerable],
        "abstained_right": [float(s.abstained_right) for s in scores],
        "invented": [float(bool(s.invented)) for s in scores if not s.abstained],
        "seconds": [s.seconds for s in scores],
    }


def summarise(scores: Sequence[Scores], *, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Name -> (mean, low, high) at 95% by bootstrap over questions; a figure of fewer than two answers is left out.

    right: of the answerable; all_right: of all, abstaining counted where it is right; cited_right: citation precision,
    of answers that cite; answered, abstained: of the answerable and of the others; invented: answers with an invented
    name, of those given; abstention_auroc: of the gate's score; seconds: an answer.
    """
    found = {
        name: _three(bootstrap_mean(values, seed=seed)) for name, values in columns(scores).items() if len(values) >= 2
    }
    area = _auroc_interval(scores, seed)
    return found | ({"abstention_auroc": area} if area else {})


def differences(
    first: Mapping[str, Scores], second: Mapping[str, Scores], *, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """`first` minus `second` over the questions (ids) both answered, paired: name -> (mean, low, high).

    cited_right: citation precision of each over the answers that it gave with citations itself, the questions resampled
    for both at once; cited_share counts an answer without a right citation as 0.
    """
    both = [(first[key], second[key]) for key in first if key in second]
    answerable = [(a, b) for a, b in both if a.answerable]
    pairs: dict[str, list[tuple[Any, Any]]] = {
        "right": [(a.right, b.right) for a, b in answerable],
        "all_right": [(a.right, b.right) for a, b in both],
        "cited_share": [(bool(a.cited_right), bool(b.cited_right)) for a, b in answerable],
        "abstained_right": [(a.abstained_right, b.abstained_right) for a, b in both],
        "invented": [(bool(a.invented), bool(b.invented)) for a, b in both],
        "seconds": [(a.seconds, b.seconds) for a, b in both],
    }
    found = {
        name: _three(paired_difference([float(a) for a, _ in values], [float(b) for _, b in values], seed=seed))
        for name, values in pairs.items()
        if len(values) >= 2
    }
    precision = _precision_difference(both, seed)
    return found | ({"cited_right": precision} if precision else {})


def _precision_difference(
    both: Sequence[tuple[Scores, Scores]], seed: int, resamples: int = 1000
) -> tuple[float, float, float] | None:
    """Share of right citations of the first minus that of the second; None where one of them hardly cites."""
    cites = np.array([[s.cited_right is not None for s in pair] for pair in both], dtype=np.float64).reshape(-1, 2)
    right = np.array([[bool(s.cited_right) for s in pair] for pair in both], dtype=np.float64).reshape(-1, 2)
    if len(both) < 2 or cites.sum(axis=0).min() < 2:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(both), size=(resamples, len(both)))
    shares = right[drawn].sum(axis=1) / np.maximum(cites[drawn].sum(axis=1), 1)
    low, high = np.quantile(shares[:, 0] - shares[:, 1], [0.025, 0.975])
    estimate = right.sum(axis=0) / cites.sum(axis=0)
    return float(estimate[0] - estimate[1]), float(low), float(high)


def _auroc_interval(scores: Sequence[Scores], seed: int) -> tuple[float, float, float] | None:
    values = np.array([s.gate_score for s in scores])
    labels = np.array([s.answerable for s in scores], dtype=bool)
    estimate = auroc(values.tolist(), labels.tolist())
    if estimate is None:
        return None
    generator = np.random.default_rng(seed)
    yes, no = np.flatnonzero(labels), np.flatnonzero(~labels)
    drawn = []
    for _ in range(500):  # each class resampled by itself: both are always there
        rows = np.concatenate([generator.choice(yes, len(yes)), generator.choice(no, len(no))])
        drawn.append(auroc(values[rows].tolist(), labels[rows].tolist()))
    low, high = np.quantile(np.array(drawn, dtype=np.float64), [0.025, 0.975])
    return estimate, float(low), float(high)


def _three(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def _normal(text: str) -> str:
    """NFKC, letter case folded, white space run together, quotes and closing punctuation gone."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"[`'\"“”‘’「」『』*]", "", text)
    text = re.sub(rf"(?<=[{_HAN}])\s+(?=[{_HAN}])", "", text)
    return re.sub(r"\s+", " ", text).strip().strip(" .,;:!?。，；：！？")


def _contains(text: str, part: str) -> bool:
    """As whole words: "sample" stands in "random.sample()" and not in "resample". Han has no words to be whole."""
    if not part:
        return False
    letter = rf"[^\W{_HAN}]"
    left = rf"(?<!{letter})" if re.match(letter, part) else ""
    right = rf"(?!{letter})(?!\.\d)" if re.search(rf"{letter}$", part) else ""
    return re.search(left + re.escape(part) + right, text) is not None
