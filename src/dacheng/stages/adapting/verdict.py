"""The exam in plain sentences: who answered best, by how much, and which differences may be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dacheng.evaluate.answers import Scores, differences

NAMES = {
    "en": {
        "bare": "the bare model",
        "sources": "the model with sources",
        "adapted": "the adapted model",
        "quote": "quoting the best passage",
        "sources+gate": "the model with sources and the gate",
    },
    "zh": {
        "bare": "裸模型",
        "sources": "模型加原文",
        "adapted": "适配后的模型",
        "quote": "直接引用最佳段落",
        "sources+gate": "模型加原文加门限",
    },
}
MEASURES = {
    "en": {"all_right": "helpful answers", "right": "right answers", "cited_right": "right citations",
           "abstained_right": "answering exactly where there is an answer"},
    "zh": {"all_right": "有用的回答", "right": "答对", "cited_right": "引用正确", "abstained_right": "该答才答"},
}  # fmt: skip
PAIRS = (("adapted", "sources"), ("adapted", "sources+gate"), ("adapted", "quote"), ("sources", "bare"))
ScoresByQuestion = Mapping[str, Scores]


@dataclass(slots=True)
class Difference:
    """`first` minus `second` in a measure, over the questions that both were asked (see evaluate.answers)."""

    first: str
    second: str
    measure: str
    estimate: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        return {"first": self.first, "second": self.second, "measure": self.measure, "estimate": self.estimate,
                "low": self.low, "high": self.high, "clear": self.clear}  # fmt: skip


@dataclass(slots=True)
class Verdict:
    """winner: the row with the most helpful answers (right, or "not in the documents" where that is so)."""

    winner: str
    sentences: dict[str, list[str]]
    differences: list[Difference] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"winner": self.winner, "sentences": self.sentences["en"], "sentences_zh": self.sentences["zh"],
                "differences": [difference.to_dict() for difference in self.differences]}  # fmt: skip


def judge(rows: Mapping[str, ScoresByQuestion], seed: int = 0) -> Verdict:
    """rows: {row of the exam: its scores}, at least one of bare, sources, adapted and quote; beside them
    "sources+gate", to tell the gate's part from the adapter's. Ties go to the row that needs less (quote, sources)."""
    order = ("quote", "sources", "bare", "adapted")
    means = {row: _mean([scores.right for scores in rows[row].values()]) for row in order if rows.get(row)}
    winner = max(means, key=lambda row: (round(means[row], 6), -order.index(row)))
    pairs = [pair for pair in PAIRS if all(rows.get(row) for row in pair)]
    others = [row for row in means if row != winner]
    if others:
        second = max(others, key=lambda row: means[row])
        if (winner, second) not in pairs and (second, winner) not in pairs:
            pairs.insert(0, (winner, second))
    found = []
    for first, second in pairs:
        apart = differences(rows[first], rows[second], seed=seed)
        found += [Difference(first, second, name, *apart[name]) for name in MEASURES["en"] if name in apart]
    said = {language: _sentences(language, winner, means, found) for language in NAMES}
    return Verdict(winner, said, found)


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def _sentences(language: str, winner: str, means: Mapping[str, float], found: Sequence[Difference]) -> list[str]:
    names, said = NAMES[language], []
    shown = {row: f"{100 * mean:.0f}%" for row, mean in means.items()}
    rest = [row for row in means if row != winner]
    if language == "en":
        beside = "; ".join(f"{names[row]} {shown[row]}" for row in rest)
        said.append(f"{_capital(names[winner])} was helpful most often: {shown[winner]} of the questions"
                    + (f" ({beside})." if beside else "."))  # fmt: skip
        if winner == "quote" and "adapted" in means:
            said.append("So the best passage, quoted as it stands, serves you better here than this model's own words.")
    else:
        beside = "；".join(f"{names[row]} {shown[row]}" for row in rest)
        said.append(f"{names[winner]}最常有用：{shown[winner]}的问题" + (f"（{beside}）。" if beside else "。"))
        if winner == "quote" and "adapted" in means:
            said.append("也就是说，在这里直接引用最佳段落，比这个模型自己的话更有用。")
    return said + [_difference(language, difference) for difference in found]


def _difference(language: str, d: Difference) -> str:
    names, measure = NAMES[language], MEASURES[language][d.measure]
    span = f"{100 * d.estimate:+.0f} [{100 * d.low:+.0f}, {100 * d.high:+.0f}]"
    if language == "en":
        clear = "" if d.clear else ": not clear of zero"
        return f"{_capital(names[d.first])} against {names[d.second]}, {measure}: {span} points{clear}."
    clear = "" if d.clear else "，与零没有明显差别"
    return f"{names[d.first]}对{names[d.second]}，{measure}：{span} 个百分点{clear}。"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
