"""From labels to preferences: what most annotators say of a pair, as lines that every reader of preferences takes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dacheng.align.labelling.labels import Label, in_force
from dacheng.align.labelling.pairs import Pair
from dacheng.errors import DachengError
from dacheng.formats.atomic import replacing_file
from dacheng.records import Drops


def preferences_of(labels: Iterable[Label], pairs: Sequence[Pair], drops: Drops) -> list[dict[str, Any]]:
    """{"id", "prompt", "chosen", "rejected" (messages), "margin", "annotators", and "tools" where the pair has some} of
    each pair on which more annotators prefer one reply than the other. margin: their mean strength towards it, ties as
    0 (for the margin of a reward model, Touvron et al. 2023, eq. 2). In the pairs' order. Counted in `drops`: pairs
    without a label, ties, even splits.
    """
    votes: dict[str, list[Label]] = defaultdict(list)
    for label in in_force(labels).values():
        if label.score is not None:
            votes[label.pair].append(label)
    found = []
    for pair in pairs:
        said = votes.get(pair.id)
        if said is None:
            drops.drop("no_label", example=pair.id)
            continue
        counts = Counter(label.choice for label in said)
        if counts["a"] == counts["b"]:
            drops.drop("evenly_split" if counts["a"] else "a_tie", example=pair.id)
            continue
        chosen, rejected = ("a", "b") if counts["a"] > counts["b"] else ("b", "a")
        score = sum(label.score or 0 for label in said) / len(said)
        found.append({
            "id": pair.id, "prompt": pair.prompt, "chosen": pair.reply(chosen), "rejected": pair.reply(rejected),
            "margin": max(0.0, score if chosen == "b" else -score),
            "annotators": sorted(label.annotator for label in said),
            **({} if pair.tools is None else {"tools": pair.tools}),
        })  # fmt: skip
        drops.keep()
    return found


def write_preferences(path: Path, labels: Iterable[Label], pairs: Sequence[Pair], drops: Drops) -> int:
    """Writes them as JSON lines and returns how many. Raises DachengError when there is none."""
    found = preferences_of(labels, pairs, drops)
    if not found:
        raise DachengError("no pair has a verdict yet", field="labels", value=dict(drops.dropped),
                           remedy="label some pairs first")  # fmt: skip
    with replacing_file(path) as file:
        for line in found:
            file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    return len(found)
