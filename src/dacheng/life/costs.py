"""What one stage of a life cost, interrupted attempts included, from the life's ledger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from dacheng.ledger import merge_counts


def stage_costs(entries: Iterable[Mapping[str, Any]], fingerprint: str) -> dict[str, Any]:
    """Sums over the attempts at `fingerprint` (entries labelled with it) and what is nested in them.

    Times, energy and money are those of the attempts, which include what is nested; tokens, FLOPs and drops are added
    over all, as the ledger says. Raises nothing: an unknown fingerprint cost nothing.
    """
    entries = list(entries)
    attempts = [entry for entry in entries if entry["labels"].get("fingerprint") == fingerprint]
    inside, known = list(attempts), {entry["id"] for entry in attempts}
    for entry in entries:  # in order of their start: a parent comes before its children
        if entry["parent"] in known and entry["id"] not in known:
            inside.append(entry)
            known.add(entry["id"])
    money: dict[str, float] = {}
    drops: dict[str, Any] = {}
    for attempt in attempts:
        for part, amount in attempt["money"].items():
            money[part] = money.get(part, 0.0) + amount
    for entry in inside:
        merge_counts(drops, entry["drops"])
    kinds = {entry["joules_kind"] for entry in attempts}
    return {
        "attempts": len(attempts),
        "wall_s": math.fsum(entry["wall_s"] for entry in attempts),
        "cpu_s": math.fsum(entry["cpu_s"] for entry in attempts),
        "peak_bytes": max((entry["peak_bytes"] for entry in inside), default=0),
        "tokens": sum(entry["tokens"] for entry in inside),
        "flops": math.fsum(entry["flops"] for entry in inside),
        "joules": math.fsum(entry["joules"] for entry in attempts),
        "joules_kind": kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "estimated",
        "money": money,
        "currency": attempts[-1]["currency"] if attempts else None,
        "assumed": sorted({name for entry in attempts for name in entry["assumed"]}),
        "drops": drops,
    }
