"""The page of a run: what it finds, and that nothing of a text becomes markup."""

from __future__ import annotations

import json

import pytest

from dacheng.align.reinforce.charts import curves
from dacheng.align.reinforce.held_out import Measured
from dacheng.align.reinforce.report import read_story, write_report
from dacheng.align.reinforce.statistics import describe, zero_spread
from dacheng.data.rollouts import Rollout
from dacheng.errors import DachengError


def run(folder, gold):
    """A run whose proxy reward rises all the time, beside a gold one."""
    folder.mkdir(exist_ok=True)
    lines = [
        {"step": i + 1, "set": i, "reward": i / 40, "rewards/proxy/mean": i / 40, "rewards/gold/mean": gold(i),
         "objective/kl": i / 10, "frac_reward_zero_std": 0.1, "completions/mean_length": 5.0}
        for i in range(40)
    ]  # fmt: skip
    (folder / "sets.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [{"step": i + 1, "metrics": {"policy.entropy": 1.0}} for i in range(40)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    return folder


def test_over_optimisation_is_found_and_named(tmp_path):
    story = read_story(run(tmp_path, gold=lambda i: i / 20 if i < 20 else 1 - (i - 20) / 20))
    (said,) = [note for note in story.notes if note.startswith("Over-optimised")]
    best = int(said.split("set ")[1].split(" ")[0])
    assert 19 <= best <= 24
    assert not any("Over" in note for note in read_story(run(tmp_path, gold=lambda i: i / 40)).notes)


def test_texts_stay_texts(tmp_path):
    before = Measured(["<script>", "b"], [[0.0], [1.0]], [["<img src=x>"], ["y"]], [[1], [1]])
    after = Measured(["<script>", "b"], [[1.0], [1.0]], [["</td>"], ["\ud800"]], [[1], [1]])
    run(tmp_path, gold=lambda i: 0.0)
    before.save(tmp_path / "before.json")
    after.save(tmp_path / "after.json")
    page = write_report(tmp_path, title="a <b>").read_text()
    assert "<script>" not in page and "<img" not in page and "a &lt;b&gt;" in page
    assert page.count("<svg") == 5 and "worth more in 0.750" in page


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(DachengError, match="no run"):
        write_report(tmp_path)
    (tmp_path / "sets.jsonl").write_text("{\n")
    with pytest.raises(DachengError, match="no log"):
        write_report(tmp_path)


def test_curves_leave_out_what_is_not_finite():
    assert curves({"a": [(0, float("nan"))]}, x_label="x", y_label="y") == ""
    drawn = curves({"a": [(i, i * i) for i in range(5000)], "b": []}, x_label="x", y_label="y < z")
    assert drawn.count("<polyline") == 1 and "y &lt; z" in drawn and len(drawn) < 20_000


def test_groups_that_are_all_equal():
    def made(reward, group):
        return Rollout("x", [1], [2, 3], [1, 1], [-1.0, -1.0], "t", reward=reward, group=group, finish_reason="stop")

    assert zero_spread([made(1, "a"), made(1, "a"), made(0, "b"), made(1, "b")]) == 0.5
    assert zero_spread([made(1, "a"), made(0, "b")]) == 0.0  # one answer a prompt: the set is the group
    assert zero_spread([made(1, "a"), made(1, "b")]) == 1.0
    found = describe([made(1, "a"), made(None, "a"), made(3, "b")])
    assert (found["reward"], found["unjudged"], found["completions/mean_length"]) == (2.0, 1.0, 2.0)
