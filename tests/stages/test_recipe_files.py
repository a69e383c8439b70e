"""The recipes in the repository read, and mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from dacheng.errors import UsageError
from dacheng.life.expand import expand, load_recipe
from dacheng.stages.base import STAGES, find_stage

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_reads(path):
    life = load_recipe(path)
    assert load_recipe(life.resolved()).resolved() == life.resolved()


def test_the_quickstart_and_its_short_form_have_the_same_stages():
    quick, minute = (load_recipe(RECIPES / "life" / name) for name in ("quickstart.yaml", "minute.yaml"))
    assert [(n.name, n.do, n.inputs) for n in quick.nodes] == [(n.name, n.do, n.inputs) for n in minute.nodes]
    once = {"measure", "data", "tokenizer", "tokenize", "plan", "train", "eval", "sample", "report"}
    assert once <= {n.do for n in quick.nodes}


def test_a_recipe_of_one_stage_expands_into_what_it_needs():
    life = load_recipe(RECIPES / "pretrain" / "tiny.yaml", ["train.steps=200"], do="train")
    assert [(node.name, node.do) for node in life.nodes] == [
        ("data", "data"), ("tokenizer", "tokenizer"), ("tokens", "tokenize"), ("train", "train"),
    ]  # fmt: skip
    assert life.nodes[-1].config.steps == 200
    assert life.nodes[-1].inputs == {"tokens": "tokens", "tokenizer": "tokenizer"}
    planned = load_recipe({"do": "train"}, ["plan.budget.minutes=2"])
    assert [node.name for node in planned.nodes] == ["data", "tokenizer", "tokens", "machine", "plan", "train"]
    assert "plan" in planned.nodes[-1].inputs


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"do": "train", "trian": {}}, "trian"),
        ({"do": "train", "train": 3}, "train"),
        ({"do": "trian"}, "do"),
        ({}, "do"),
        ({"do": "data"}, "do"),
        ({"stages": [{"name": "data", "do": "data"}]}, "recipe"),
    ],
)
def test_what_is_no_training_recipe(values, field):
    with pytest.raises(UsageError) as caught:
        load_recipe(values, do="train")
    assert caught.value.field == field


def test_sections_are_only_made_when_asked_for():
    assert [stage["name"] for stage in expand({"do": "data"})["stages"]] == ["data"]
    names = [stage["name"] for stage in expand({"do": "data", "tokens": {}})["stages"]]
    assert names == ["data", "tokenizer", "tokens"]


@pytest.mark.parametrize("do", STAGES)
def test_every_stage_has_what_a_stage_needs(do):
    stage = find_stage(do)
    assert stage.VERSION >= 1 and stage.KIND and (stage.__doc__ or "").startswith(f"do: {do}.")
