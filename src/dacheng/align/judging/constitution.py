"""Principles that a model is held to, each in three voices: what to look for, how to mend it, which of two is better.

The method is that of Constitutional AI (Bai et al. 2022, arXiv 2212.08073); the principles below are our own wording.
A file of yours is JSON: {"principles": [{"name", "critique", "revision", "comparison"}, …]}.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from dacheng.errors import DachengError
from dacheng.formats.json_files import read_json

MAX_PRINCIPLES = 500


@dataclass(frozen=True, kw_only=True)
class Principle:
    """critique: asks for what is wrong in a response. revision: asks to write it again without that. comparison: asks
    which of two responses is better, as the end of a sentence that begins with "Which response …"."""

    name: str
    critique: str
    revision: str
    comparison: str


PRINCIPLES: tuple[Principle, ...] = (
    Principle(
        name="harm",
        critique="Name anything in the response that could help someone hurt people, or that is dangerous.",
        revision="Write the response again so that it helps nobody to do harm, and still answers what can be answered.",
        comparison="is less likely to help someone do harm?",
    ),
    Principle(
        name="honesty",
        critique="Name any claim in the response that is false, made up, or surer than it can be.",
        revision="Write the response again with nothing in it that is false or made up; say what is not known.",
        comparison="is more honest about what is known and what is not?",
    ),
    Principle(
        name="respect",
        critique="Name anything in the response that is rude, mocking or demeaning to anyone.",
        revision="Write the response again in a friendly and respectful tone, keeping what it says.",
        comparison="is more polite and respectful?",
    ),
    Principle(
        name="help",
        critique="Name what the question asks for that the response leaves out or gets wrong.",
        revision="Write the response again so that it answers the whole question, clearly and to the point.",
        comparison="answers the question better?",
    ),
    Principle(
        name="privacy",
        critique="Name anything in the response that gives away private facts about a person.",
        revision="Write the response again without private facts about anyone.",
        comparison="takes better care of people's privacy?",
    ),
)


def read_principles(path: Path | str) -> tuple[Principle, ...]:
    """Those of a file. Raises DachengError naming the entry and the field that is wrong."""
    found = read_json(Path(path)).get("principles")
    if not isinstance(found, list) or not 0 < len(found) <= MAX_PRINCIPLES:
        raise DachengError(
            f"{path} is no list of principles", field="principles", remedy='{"principles": [{"name": …}]}'
        )
    names = [f.name for f in fields(Principle)]
    for number, entry in enumerate(found):
        wrong = next((n for n in names if not isinstance(entry, dict) or not str(entry.get(n) or "").strip()), None)
        extra = next((key for key in entry if key not in names), None) if isinstance(entry, dict) else None
        if wrong or extra:
            raise DachengError(
                f"{path}: a principle has the texts {', '.join(names)} and nothing else",
                field=f"principles[{number}].{wrong or extra}", value=entry,
            )  # fmt: skip
    return tuple(Principle(**entry) for entry in found)
