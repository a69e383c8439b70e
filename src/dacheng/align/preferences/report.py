"""What a file of preferences is like before anyone learns from it: do people agree, does length alone decide."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from dacheng.data.chat_layouts import Messages
from dacheng.data.pair_layouts import Comparison, MarkedReply
from dacheng.data.preferences import Preference
from dacheng.evaluate.intervals import wilson


def describe(preferences: Sequence[Preference]) -> dict[str, Any]:
    """Counts, agreement and length bias, as plain data.

    agreement: of comparisons of the same two replies to the same prompt, made more than once, the share that says what
    their majority says; contradicted: how many replies pairs were put both ways. length: mean characters of chosen and
    rejected replies, and the share of comparisons whose chosen reply is the longer one, with Wilson's interval: far
    from a half, a reward model can be right without reading (Singhal et al. 2023).
    """
    pairs = [(p, p.said) for p in preferences if isinstance(p.said, Comparison)]
    marked = [p.said for p in preferences if isinstance(p.said, MarkedReply)]
    found: dict[str, Any] = {
        "comparisons": len(pairs),
        "marked": len(marked),
        "prompts": len({p.prompt_key for p in preferences}),
        "openings": len({p.opening_key for p in preferences}),
        "questions": {str(n): count for n, count in sorted(Counter(map(_questions, preferences)).items())},
        "with_margin": sum(said.margin is not None for _, said in pairs),
    }
    if pairs:
        found["agreement"] = _agreement(pairs)
        found["length"] = _length(said for _, said in pairs)
    if marked:
        wanted = [len(_text(said.reply)) for said in marked if said.desirable]
        unwanted = [len(_text(said.reply)) for said in marked if not said.desirable]
        found["desirable"] = wilson(len(wanted), len(marked)).to_dict()
        found["marked_characters"] = {"desirable": _mean(wanted), "undesirable": _mean(unwanted)}
    return found


def _agreement(pairs: Sequence[tuple[Preference, Comparison]]) -> dict[str, Any]:
    votes: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for preference, said in pairs:
        one, other = _text(said.chosen), _text(said.rejected)
        votes[preference.prompt_key, min(one, other), max(one, other)].append(one < other)
    repeated = [vote for vote in votes.values() if len(vote) > 1]
    total = sum(map(len, repeated))
    with_majority = sum(max(sum(vote), len(vote) - sum(vote)) for vote in repeated)
    return {
        "repeated": len(repeated),
        "contradicted": sum(0 < sum(vote) < len(vote) for vote in repeated),
        "with_majority": wilson(with_majority, total).to_dict() if total else None,
    }


def _length(said: Any) -> dict[str, Any]:
    lengths = [(len(_text(one.chosen)), len(_text(one.rejected))) for one in said]
    differing = [(a, b) for a, b in lengths if a != b]
    longer = sum(a > b for a, b in differing)
    return {
        "chosen_characters": _mean([a for a, _ in lengths]),
        "rejected_characters": _mean([b for _, b in lengths]),
        "equal": len(lengths) - len(differing),
        "chosen_is_longer": wilson(longer, len(differing)).to_dict() if differing else None,
    }


def _questions(preference: Preference) -> int:
    """How many the user has asked before the reply."""
    return sum(m.get("role") == "user" for m in preference.prompt)


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _text(messages: Messages) -> str:
    return "\n".join(str(m.get("content") or m.get("tool_calls") or "") for m in messages)


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    shown = [f"{found['comparisons']} comparisons and {found['marked']} marked replies to {found['prompts']} prompts "
             f"(of {found['openings']} first questions)"]  # fmt: skip
    agreement = found.get("agreement")
    if agreement and agreement["repeated"]:
        share = agreement["with_majority"]
        shown.append(f"{agreement['repeated']} were compared more than once: {_share(share)} of the votes are with the "
                     f"majority, {agreement['contradicted']} were put both ways")  # fmt: skip
    elif agreement:
        shown.append("no two replies were compared twice: nothing says how far people agree")
    length = found.get("length")
    if length:
        shown.append(f"characters: chosen {length['chosen_characters']:.0f}, rejected "
                     f"{length['rejected_characters']:.0f}")  # fmt: skip
        if length["chosen_is_longer"]:
            share = length["chosen_is_longer"]
            decides = "; length alone says something" if share["low"] > 0.5 or share["high"] < 0.5 else ""
            shown.append(f"the chosen reply is the longer one in {_share(share)}{decides}")
    if found["marked"]:
        means = found["marked_characters"]
        shown.append(f"desirable: {_share(found['desirable'])}; characters " + ", ".join(
            f"{name} {mean:.0f}" for name, mean in means.items() if mean is not None))  # fmt: skip
    return shown


def _share(interval: dict[str, Any]) -> str:
    return f"{interval['estimate']:.1%} ({interval['low']:.0%} to {interval['high']:.0%})"
