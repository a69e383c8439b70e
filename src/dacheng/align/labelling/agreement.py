"""What the labels of several annotators are worth: agreement, and the biases that pairs are known to invite."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dacheng.align.labelling.labels import Label, in_force
from dacheng.align.labelling.pairs import Pair, spoken
from dacheng.evaluate.agreement import alpha_interval, cohen_kappa
from dacheng.evaluate.intervals import wilson

_VALUES = {"a": -1.0, "tie": 0.0, "b": 1.0}


def agreement_report(labels: Iterable[Label], pairs: Sequence[Pair], damaged: int = 0) -> dict[str, Any]:
    """What counts of the labels (the last of each annotator and pair), as plain data:

    - annotators: labels, ties, skips, seconds a label (median) of each, and with 95% Wilson intervals how often they
      chose the reply that stood first, the longer reply, and the one that the file itself prefers
    - kappa: of each two annotators Cohen's kappa over a, b and tie, and on how many pairs
    - alpha: Krippendorff's, nominal over a, b and tie, and ordinal over the five strengths, each with a bootstrap
    - pairs: labelled, by two or more, agreed by all of them; elsewhere: labels of pairs that are not here
    """
    known = {pair.id: pair for pair in pairs}
    counted = in_force(labels)
    here = {key: label for key, label in counted.items() if label.pair in known}
    by_pair: dict[str, list[Label]] = defaultdict(list)
    by_annotator: dict[str, list[Label]] = defaultdict(list)
    for label in here.values():
        by_annotator[label.annotator].append(label)
        if label.choice in _VALUES:
            by_pair[label.pair].append(label)
    shared = [found for found in by_pair.values() if len(found) > 1]
    agreed = sum(len({label.choice for label in found}) == 1 for found in shared)
    choices = [[_VALUES[label.choice] for label in found] for found in shared]
    scores = [[float(label.score or 0) for label in found] for found in shared]
    alphas = {"nominal": alpha_interval(choices), "ordinal": alpha_interval(scores, "ordinal")}
    return {
        "annotators": {name: _annotator(found, known) for name, found in sorted(by_annotator.items())},
        "kappa": _kappas(by_annotator),
        "alpha": {name: None if found is None else found.to_dict() for name, found in alphas.items()},
        "pairs": {"all": len(pairs), "labelled": len(by_pair), "by_two_or_more": len(shared), "agreed": agreed},
        "elsewhere": len(counted) - len(here), "damaged_lines": damaged,
    }  # fmt: skip


def _annotator(labels: Sequence[Label], pairs: Mapping[str, Pair]) -> dict[str, Any]:
    counts = Counter(label.choice for label in labels)
    decided = [label for label in labels if label.choice in ("a", "b")]
    longer = [(label.choice, _longer(pairs[label.pair])) for label in decided]
    said = [(label.choice, pairs[label.pair].said) for label in decided]
    times = sorted(label.seconds for label in labels if label.seconds is not None)
    return {
        "labels": len(labels), "ties": counts["tie"], "skips": counts["skip"],
        "seconds": times[len(times) // 2] if times else None,
        "first": _share([(label.choice, label.first) for label in decided]),
        "longer": _share(longer), "as_the_file": _share(said),
    }  # fmt: skip


def _share(found: Sequence[tuple[str, str | None]]) -> dict[str, Any] | None:
    """How often the two are equal, where the second is known."""
    known = [a == b for a, b in found if b is not None]
    return wilson(sum(known), len(known)).to_dict() if known else None


def _longer(pair: Pair) -> str | None:
    a, b = len(spoken(pair.a)), len(spoken(pair.b))
    return None if a == b else "a" if a > b else "b"


def _kappas(by_annotator: Mapping[str, Sequence[Label]]) -> list[dict[str, Any]]:
    found = []
    said = {name: {x.pair: x.choice for x in labels if x.choice in _VALUES} for name, labels in by_annotator.items()}
    for one, other in itertools.combinations(sorted(said), 2):
        both = sorted(said[one].keys() & said[other].keys())
        if both:
            first, second = ([said[who][pair] for pair in both] for who in (one, other))
            equal = sum(a == b for a, b in zip(first, second)) / len(both)
            found.append({"annotators": [one, other], "pairs": len(both), "agreement": equal,
                          "kappa": cohen_kappa(first, second)})  # fmt: skip
    return found


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """The report in sentences, for a terminal."""
    pairs = report["pairs"]
    lines = [f"{pairs['labelled']} of {pairs['all']} pairs are labelled, {pairs['by_two_or_more']} by two or more; "
             f"in {pairs['agreed']} of these all agree"]  # fmt: skip
    for name, found in report["alpha"].items():
        lines.append(f"Krippendorff's alpha ({name}): {_interval(found)}")
    for found in report["kappa"]:
        value = "not defined" if found["kappa"] is None else f"{found['kappa']:.2f}"
        who = " and ".join(found["annotators"])
        lines.append(f"Cohen's kappa of {who}: {value} on {found['pairs']} pairs (equal in {found['agreement']:.0%})")
    for name, found in report["annotators"].items():
        parts = [f"{found['labels']} labels, {found['ties']} ties, {found['skips']} skipped"]
        words = (("first", "the first"), ("longer", "the longer"), ("as_the_file", "the file's own"))
        parts += [f"chose {said} in {_interval(found[key])}" for key, said in words if found[key] is not None]
        lines.append(f"{name}: {'; '.join(parts)}")
    for key, said in (
        ("elsewhere", "labels are of pairs that are not in the file"),
        ("damaged_lines", "lines are no labels"),
    ):
        if report[key]:
            lines.append(f"{report[key]} {said}")
    return lines


def _interval(found: Mapping[str, Any] | None) -> str:
    return "not defined yet" if found is None else f"{found['estimate']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
