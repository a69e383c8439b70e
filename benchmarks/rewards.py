"""What rewards cost and catch: programs a second in the sandbox, each kind's speed, HumanEval, a small judge.

python benchmarks/rewards.py [--data DIR] [--judge MODEL --pairs N] [--rounds 7]
One JSON object a line; seconds are medians of rounds with their quartiles. --data: a folder with humaneval/, gsm8k/ and
hh_rlhf_harmless_test/. --judge: the judge alone. Nobody else has these; beside the sandbox stands a plain subprocess.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--judge", help="a model directory: agreement with people on pairs of HH-RLHF")
    parser.add_argument("--pairs", type=int, default=100)
    given = parser.parse_args()
    if given.judge:
        judge_figures(given.judge, given.data, given.pairs)
        return
    sandbox_figures(given.rounds)
    program_figures(given.data)
    rule_figures(given.data, given.rounds)


def line(figure: str, **values: Any) -> None:
    print(json.dumps({"figure": figure, **values}), flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(text) for text in file]


def timed(work: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Median and quartiles of seconds; the first round is not counted."""
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    low, middle, high = statistics.quantiles(seconds[1:], n=4)
    return middle, low, high


def sandbox_figures(rounds: int) -> None:
    from dacheng.sandbox import available, run_python

    plain = [sys.executable, "-I", "-S", "-c", "print(1)"]
    ours = timed(lambda: [run_python("print(1)") for _ in range(10)], rounds)
    peer = timed(lambda: [subprocess.run(plain, capture_output=True) for _ in range(10)], rounds)
    line(
        "a program of one line, in the sandbox beside a plain subprocess", ours=ours[0] / 10, peer=peer[0] / 10,
        quartiles=[[x / 10 for x in ours[1:]], [x / 10 for x in peer[1:]]], ratio=peer[0] / ours[0],
        unit="s a program", rounds=rounds, held_by=available(),
    )  # fmt: skip


def program_figures(data: Path) -> None:
    from dacheng.align.rewards import Sample, TestsReward

    rows = read(data / "humaneval" / "HumanEval.jsonl.gz")
    reward = TestsReward(with_prompt=True, trust=True, fenced="never", tests="test")
    decided = [_splits(row) for row in rows]
    cases = {
        "the authors' solutions": [row["canonical_solution"] for row in rows],
        "return None": ["    return None\n"] * len(rows),
        "sys.exit(0)": ["    pass\nimport sys\nsys.exit(0)\n"] * len(rows),
        "an object that equals everything": [
            "    pass\nclass E:\n    def __eq__(self, o): return True\n    __hash__ = None\n"
            f"def {row['entry_point']}(*a, **k): return E()\n"
            for row in rows
        ],
    }
    for name, responses in cases.items():
        samples = [Sample(row["prompt"], response=text, meta=row) for row, text in zip(rows, responses)]
        began = time.perf_counter()
        passed = [value or 0.0 for value in reward(samples)]
        seconds = time.perf_counter() - began
        outside = sum(value for value, split in zip(passed, decided) if split)
        line(
            f"HumanEval's tests pass: {name}", ours=sum(passed), of=len(rows), unit="programs",
            decided_outside=[outside, sum(decided)], inside=[sum(passed) - outside, len(rows) - sum(decided)],
            seconds=round(seconds, 2),
        )  # fmt: skip


def _splits(row: dict[str, Any]) -> bool:
    from dacheng.align.rewards.assertions import NotAnAssertion, read_assertions

    try:
        return bool(read_assertions(row["test"], row["entry_point"]))
    except NotAnAssertion:
        return False


def rule_figures(data: Path, rounds: int) -> None:
    from dacheng.align.rewards import Sample, reward_from_config

    rows = read(data / "gsm8k" / "test.jsonl.gz")
    samples = [
        Sample(
            r["question"], response=r["answer"], meta={"answer": r["answer"]}, completion_tokens=9, finish_reason="stop"
        )
        for r in rows
    ]
    for config in ({"kind": "exact"}, {"kind": "format"}, {"kind": "length", "maximum": 9}, {"kind": "ast"}):
        reward = reward_from_config(config)
        middle, low, high = timed(lambda reward=reward: reward(samples), rounds)
        line(
            f"{config['kind']} on GSM8K's solutions", ours=len(samples) / middle, unit="samples/s", rounds=rounds,
            quartiles=[len(samples) / high, len(samples) / low], mean=statistics.fmean(reward(samples)),
        )  # fmt: skip


def judge_figures(model: str, data: Path, pairs: int) -> None:
    """How often a judge names the reply that people chose, with its interval, and how it contradicts itself."""
    from dacheng.align.judging import Asker, Pair, compare, figures
    from dacheng.data.pair_layouts import read_preference
    from dacheng.evaluate.intervals import wilson

    found: list[Pair] = []
    for row in read(data / "hh_rlhf_harmless_test" / "test.jsonl.gz"):
        comparison, _ = read_preference(row)
        replies = [r[0]["content"] for r in (comparison.chosen, comparison.rejected) if len(r) == 1]
        if len(replies) == 2 and all(replies) and sum(len(str(m)) for m in comparison.prompt) < 1500:
            found.append(Pair(comparison.prompt, *replies))  # the chosen one is `one`
        if len(found) == pairs:
            break
    began = time.perf_counter()
    verdicts = compare(Asker.open(model), found, comparison="is more helpful, honest and harmless?")
    seconds = time.perf_counter() - began
    said = [v.probability for v in verdicts if v.probability is not None and v.probability != 0.5]
    right = wilson(sum(p > 0.5 for p in said), len(said))
    once = [v.shown_first for v in verdicts if v.shown_first is not None]
    longer = wilson(sum(len(p.one) > len(p.other) for p in found), len(found))
    line(
        f"judge {Path(model).name} names the reply that people chose",
        ours=right.estimate, low=right.low, high=right.high, n=right.n,
        longer_one_alone=[longer.estimate, longer.low, longer.high],
        chosen_shown_first_only=sum(p > 0.5 for p in once) / max(1, len(once)),
        judge=figures(found, verdicts).sentence(), seconds=round(seconds, 1), unit="share",
    )  # fmt: skip


if __name__ == "__main__":
    main()
