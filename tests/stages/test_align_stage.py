"""do: align: functions that parse, before and after; what it leaves, what the report says, what it refuses."""

from __future__ import annotations

import json

import pytest
from small_stages import STAGES

from dacheng.data.documents import DocumentStore
from dacheng.errors import UsageError
from dacheng.formats.model_directory import load_model
from dacheng.life.graph import parse
from dacheng.life.run import run_life
from dacheng.stages.align import Config, compared, sentence

ALIGN = {
    "name": "align", "do": "align", "from": ["train", "data"], "prompts": 24, "held_out": 8, "text_bytes": 600,
    "max_tokens": 40, "least_lines": 1, "group": 8, "prompts_per_step": 4, "lr": 3e-3, "steps": 12,
}  # fmt: skip


def life(*more, **changes):
    train = {**next(stage for stage in STAGES if stage["name"] == "train"), "steps": 60, "eval_every": 1000,
             "save_every": 1000, "batch_rows": 8, "model": {"width": 64, "layers": 2}}  # fmt: skip
    stages = [stage for stage in STAGES if stage["name"] in ("machine", "data", "tokenizer", "tokens", "plan")]
    stages = [stage | ({"context_length": 128} if stage["name"] == "tokens" else {}) for stage in stages]
    report = {"name": "report", "do": "report", "from": ["data", "train", "align"]}
    return parse({"name": "aligned", "stages": [*stages, train, {**ALIGN, **changes}, report]}, more)


@pytest.fixture(scope="module")
def aligned(corpus, tmp_path_factory):
    return run_life(life(f"data.source={corpus}"), tmp_path_factory.mktemp("aligned"))


def made(result, name):
    return next(stage.artifact for stage in result.stages if stage.name == name)


def test_more_functions_parse_after_than_before(aligned):
    found = made(aligned, "align").metrics["alignment"]
    before, after, apart = found["before"], found["after"], found["difference"]
    assert before["n"] == after["n"] == 8 and apart["n"] == 8
    assert apart["estimate"] == pytest.approx(after["parse"] - before["parse"])
    assert after["parse"] >= before["parse"] + 0.25 and apart["low"] > 0
    assert {"tokens", "ended", "code_lines", "different", "bits_per_byte"} <= set(after)
    assert 0 < before["bits_per_byte"] < 8 and after["code_lines"] > 0
    sets = (made(aligned, "align").path.parent / "training" / "sets.jsonl").read_text().splitlines()
    assert len(sets) == 12 and "rewards/lines/mean" in json.loads(sets[0])


def test_the_model_is_another_one_with_its_parent_named(aligned):
    base, policy = made(aligned, "train").path, made(aligned, "align").path
    one, other = load_model(base), load_model(policy)
    assert other.provenance["parent"] == one.provenance["weights"]["sha256"]
    assert other.tokenizer.fingerprint == one.tokenizer.fingerprint
    assert aligned.artifact("model").path == policy
    assert made(aligned, "align").totals["tokens"] > 0


def test_no_held_out_function_is_learnt_from(aligned, corpus):
    out = made(aligned, "align").path.parent
    learnt = [json.loads(line)["prompt"] for line in (out / "prompts.jsonl").read_text().splitlines()]
    shown = json.loads((out / "alignment.json").read_text())
    store = DocumentStore.open(made(aligned, "data").path)
    held_out = "".join(store.texts("valid"))
    assert len(learnt) == 24 and not any(prompt in held_out for prompt in learnt)
    assert all(row["prompt"] in held_out for row in shown["samples"])


def test_the_report_says_before_and_after(aligned):
    page = made(aligned, "report").path.read_text(encoding="utf-8")
    assert "Alignment (align): before → after" in page and "held-out functions parsed before" in page
    assert page.count("Training (") == 1 and "Shorter completions parse more easily" in page


def test_what_is_compared():
    state = {
        "texts": ["    return 1\n", "    return (\n"],
        "tokens": [3, 4],
        "ended": [True, False],
        "bits_per_byte": None,
    }
    better = {**state, "texts": ["    return 1\n", "    x = 2\n    return x\n"]}
    asked = ["def f():\n    '''x'''\n", "def g():\n    '''x'''\n"]
    found = compared(state, better, asked)
    assert (found["before"]["parse"], found["after"]["parse"]) == (0.5, 1.0)
    assert found["after"]["code_lines"] == 1.5 and found["before"]["ended"] == 0.5
    assert "50.0% of held-out functions parsed before, 100.0% after (difference +50.0 points" in sentence(found)


def test_a_single_line_does_not_win():
    from dacheng.align.rewards.base import Sample

    one, three = "    return 1\n", "    x = 1\n    y = x\n    return y\n"
    told = [Sample("def f():\n    1\n", None, text) for text in (one, three, three + "    )\n", "", "    # no\n")]
    total = [judged.total for judged in Config(steps=1).reward()(told)]
    assert total == pytest.approx([0.5, 1.5, 0.5 * 3 / 4, 0.0, 0.0])
    assert [j.total for j in Config(steps=1, least_lines=1, lines_weight=0.0).reward()(told[:2])] == [1.0, 1.0]


def test_what_is_refused():
    for changes, field in (
        ({}, "steps"),
        ({"steps": 1, "prompts": 1}, "prompts"),
        ({"steps": 1, "least_lines": 0}, "least_lines"),
        ({"steps": 1, "parse_weight": 0.0}, "parse_weight"),
        ({"steps": 1, "lines_weight": -1.0}, "lines_weight"),
        ({"steps": 1, "group": 1}, "group"),
    ):
        with pytest.raises(UsageError) as caught:
            Config(**changes)
        assert caught.value.field == field
    with pytest.raises(UsageError) as caught:
        parse({"name": "x", "stages": [{**ALIGN, "from": []}]})
    assert "align.from" in caught.value.field
