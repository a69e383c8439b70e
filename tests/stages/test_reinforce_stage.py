"""do: reinforce, from the recipe in the repository to a model that loads and a page, with a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dacheng.cli.align_report import report
from dacheng.cli.train import train
from dacheng.errors import DachengError, UsageError
from dacheng.formats.model_directory import load_model, save_model
from dacheng.life.expand import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "align" / "grpo.yaml"
sys.path.append(str(ROOT / "tests" / "align" / "reinforce"))


@pytest.fixture
def base(tmp_path):
    import reinforce_toys as toys

    return save_model(tmp_path / "base", toys.model(width=32), toys.tokenizer())


def lines(path, count=8):
    path.write_text("".join(json.dumps({"prompt": f"{n}+1=", "answer": str(n + 1)}) + "\n" for n in range(count)))
    return path


def small(base, *more):
    """Four steps of the recipe's own method and rewards."""
    found = lines(base.parent / "prompts.jsonl")
    return (f"reinforce.model={base}", f"reinforce.prompts=[{found}]", f"reinforce.held_out=[{found}]",
            "reinforce.steps=4", "reinforce.minutes=null", "reinforce.group=4", "reinforce.prompts_per_step=2",
            "reinforce.max_tokens=5", "reinforce.adapter=2", *more)  # fmt: skip


def test_the_recipe_trains_a_model_and_writes_its_page(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(RECIPE, *small(base), out=tmp_path / "run", json=True) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    artifact, metrics = stage["artifact"], stage["artifact"]["metrics"]
    assert (stage["do"], artifact["kind"], metrics["steps"], metrics["sets"]) == ("reinforce", "model", 4, 4)
    assert {"reward_before", "reward_after", "win_rate"} <= metrics.keys()
    assert {"rewards/exact/mean", "rewards/length/mean", "objective/kl"} <= metrics["figures"].keys()
    folder = Path(artifact["path"]).parent
    assert load_model(artifact["path"]).tokenizer is not None and (folder / "adapter").is_dir()
    page = (folder / "report.html").read_text()
    assert page.count("<svg") >= 4 and "Answers with the same draws" in page
    for run in (folder, tmp_path / "run"):  # the stage, or the life around it
        assert report(run, json=True) == 0
        assert len(json.loads(capsys.readouterr().out)["findings"]) == 4
    assert train(RECIPE, *small(base, "reinforce.micro_rows=3"), out=tmp_path / "run", json=True) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["status"] == "cached"  # that moves no weight


def test_all_weights_by_ppo_with_text_beside(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    template = said + "{% if add_generation_prompt %}a:{% endif %}"
    (base / "chat_template.jinja").write_text(template)
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "chats.jsonl").write_text((json.dumps(chat) + "\n") * 8)
    more = ("reinforce.method=ppo", "reinforce.adapter=0", "reinforce.updates_per_rollout=2", "reinforce.ptx_coef=0.5",
            f"reinforce.text=[{tmp_path / 'chats.jsonl'}]", "reinforce.text_rows=2")  # fmt: skip
    assert train(RECIPE, *small(base, *more), out=tmp_path / "run", json=True) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert stage["artifact"]["metrics"]["sets"] == 2
    logs = Path(stage["artifact"]["path"]).parent / "training" / "train.jsonl"
    first = json.loads(logs.read_text().splitlines()[0])
    assert first["metrics"]["policy.ptx/loss"] > 1 and "critic.loss/value_avg" in first["metrics"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("reinforce.rewards=[{kind: exakt}]", "no such kind"),
        ("reinforce.group=1", "compares the answers"),
        ("reinforce.temperature=0", "greedy"),
        ("reinforce.kl_target=1", "a part of the loss"),
        ("reinforce.epochs=3", "cannot be gone over"),
        ("reinforce.method=trpo", "method"),
        ("reinforce.prompts=[nowhere.jsonl]", "does not exist"),
    ],
)
def test_what_cannot_be_is_refused(base, tmp_path, monkeypatch, change, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, DachengError)) as caught:
        train(RECIPE, *small(base, change), out=tmp_path / "run", json=True)
    assert problem in str(caught.value)


def test_prompts_that_are_none_are_counted(base, tmp_path, capsys):
    path = lines(tmp_path / "prompts.jsonl", 2)
    with open(path, "a") as file:
        file.write('{"prompt": ""}\n{"text": "no prompt"}\n[1]\nnot json\n')
    from dacheng.align.reinforce.prompts import read_prompts
    from dacheng.records import Drops

    drops = Drops()
    found = read_prompts([path], load_model(base).tokenizer, drops=drops)
    assert [prompt.meta for prompt in found] == [{"answer": "1"}, {"answer": "2"}]
    assert dict(drops.dropped) == {"empty_prompt": 1, "not_a_prompt": 1, "not_an_object": 1, "bad_json": 1}
    with pytest.raises(DachengError, match="no prompt is left"):
        read_prompts([path], load_model(base).tokenizer, longest=1)


def test_the_recipe_reads():
    assert [(node.do, node.config.method) for node in load_recipe(RECIPE).nodes] == [("reinforce", "grpo")]
