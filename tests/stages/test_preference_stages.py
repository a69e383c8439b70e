"""do: prefer and do: reward, from the recipes in the repository, and the verbs of dacheng align, with a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dacheng.cli.align_preferences import PairOptions, pairs, prefer, reward, score
from dacheng.cli.main import main
from dacheng.cli.train import train
from dacheng.errors import DachengError, UsageError
from dacheng.formats.model_directory import load_model
from dacheng.life.expand import load_recipe

ALIGN = Path(__file__).resolve().parents[2] / "recipes" / "align"
PAIRS = ALIGN / "pairs.jsonl"
sys.path.append(str(Path(__file__).resolve().parents[1] / "align"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model whose tokenizer knows the recipes' words."""
    import preference_toys

    from dacheng.formats.model_directory import save_model
    from dacheng.text import train_tokenizer
    from dacheng.text.chat.builtin import TEMPLATES

    tokenizer = train_tokenizer([PAIRS.read_text()], vocab_size=700, special_tokens=["<|im_start|>", "<|im_end|>"])
    path = save_model(
        tmp_path_factory.mktemp("base") / "m",
        preference_toys.model(tokenizer.vocab_size, width=32, positions=160),
        tokenizer,
    )
    (path / "chat_template.jinja").write_text(TEMPLATES["chatml"])
    return path


def overrides(do, base, *more):
    values = {"model": base, "data": f"[{PAIRS}]", "held_out": f"[{ALIGN / 'pairs_held_out.jsonl'}]", "seconds": "null",
              "lr": "3e-3", "epochs": 3, "max_tokens": 160}  # fmt: skip
    return (*(f"{do}.{name}={value}" for name, value in values.items()), *more)


def test_the_recipe_prefers(base, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(ALIGN / "prefer.yaml", *overrides("prefer", base), out=run, json=True) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    artifact = stage["artifact"]
    metrics = artifact["metrics"]
    assert (stage["do"], artifact["kind"], metrics["measured_on"]) == ("prefer", "model", "held out")
    assert metrics["after"]["rewards/accuracies"] >= 0.9 > metrics["before"]["rewards/accuracies"]
    assert load_model(artifact["path"]).tokenizer is not None
    assert (Path(artifact["path"]).parent / "adapter" / "adapter_config.json").is_file()
    assert train(ALIGN / "prefer.yaml", *overrides("prefer", base, "prefer.threads=1"), out=run, json=True) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["status"] == "cached"


def test_the_recipe_trains_a_reward_model_that_scores(base, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(ALIGN / "reward.yaml", *overrides("reward", base), out=run, json=True) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    metrics = stage["artifact"]["metrics"]
    assert stage["artifact"]["kind"] == "reward" and metrics["accuracy"][0] >= 0.9
    assert metrics["accuracy"][1] < metrics["accuracy"][0] and 0.2 < metrics["length_baseline"]["accuracy"] < 0.8
    chats = tmp_path / "chats.jsonl"
    said = ("What a stupid question. It is late. Get lost.", "Thank you for asking. It is late. I hope that helps.")
    chats.write_text("".join(json.dumps({"prompt": "Is it late?", "completion": text}) + "\n" for text in said))
    assert score(chats, reward_model=Path(stage["artifact"]["path"]), json=True) == 0
    best, worst = json.loads(capsys.readouterr().out)["scores"]
    assert best["id"].endswith(":2") and best["score"] > worst["score"]


def test_a_recipe_may_fine_tune_first(tmp_path):
    life = load_recipe(
        {"do": "prefer", "prefer": {"data": ["x.jsonl"], "steps": 3}, "sft": {"data": ["y"], "steps": 3}}
    )
    assert [(node.do, node.inputs) for node in life.nodes] == [("sft", {}), ("prefer", {"model": "sft"})]


def test_the_report_on_pairs(capsys, tmp_path, shared_data):
    assert pairs([PAIRS], json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["comparisons"] == 44 and found["agreement"] == {
        "repeated": 0,
        "contradicted": 0,
        "with_majority": None,
    }
    share = found["length"]["chosen_is_longer"]
    assert share["low"] < 0.5 < share["high"]  # length alone does not decide in the recipe
    rasbt = shared_data / "rasbt_instruct/instruction-data-with-preference.json"
    assert pairs([rasbt]) == 0
    text = capsys.readouterr().out
    assert "1094 comparisons" in text and "6 x both_replies_are_the_same" in text


def test_the_verbs(base, tmp_path, capsys):
    said = {"model": str(base), "data": [PAIRS], "json": True, "max_tokens": 160, "epochs": 0.2}
    assert prefer(options=PairOptions(**said, out=tmp_path / "p", lr=1e-3), loss="simpo") == 0
    made = json.loads(capsys.readouterr().out)["stages"][0]["artifact"]["metrics"]
    assert made["loss"] == "simpo" and 0 < made["measured_pairs"] < 20
    assert reward(options=PairOptions(**said, out=tmp_path / "r", rank=0)) == 0
    made = json.loads(capsys.readouterr().out)["stages"][0]["artifact"]["metrics"]
    assert made["trained"] == made["total"]
    assert main(["align", "pairs", str(PAIRS), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"] == 44


def test_what_is_missing_is_named(base, tmp_path, capsys):
    for do, values, field in (
        ("prefer", {"steps": 3}, "prefer.data"),
        ("prefer", {"data": ["x"], "steps": 3, "los": "dpo"}, "prefer.los"),
        ("prefer", {"data": ["x"], "steps": 3, "loss": "dop"}, "prefer.loss"),
        (
            "reward",
            {"data": ["x"], "held_out": ["y"], "held_out_fraction": 0.2, "steps": 3},
            "reward.held_out_fraction",
        ),
        ("reward", {"data": ["x"]}, "reward.steps"),
    ):
        with pytest.raises(UsageError) as caught:
            load_recipe({"do": do, do: values})
        assert caught.value.field == field
    for override, field in (("prefer.data=[nowhere.jsonl]", "data"), ("prefer.model=nowhere", "model")):
        with pytest.raises(DachengError) as caught:
            train(ALIGN / "prefer.yaml", *overrides("prefer", base, override), out=tmp_path / "run")
        assert caught.value.field == field and "nowhere" in str(caught.value)
    assert main(["align", "pairs", "nowhere.jsonl"]) == 1
    assert "nowhere.jsonl" in capsys.readouterr().err
