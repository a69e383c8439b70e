"""do: adapt, from the recipe in the repository to an adapter that loads, with a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dacheng.cli.generate import generate
from dacheng.cli.train import train
from dacheng.errors import DachengError, UsageError
from dacheng.formats.model_directory import load_model
from dacheng.formats.peft import read_adapter
from dacheng.life.expand import load_recipe

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "adapt" / "lora.yaml"
sys.path.append(str(Path(__file__).resolve().parents[1] / "adapt"))


@pytest.fixture
def base(tmp_path):
    import adapt_toys

    return adapt_toys.directory(tmp_path)


def small(base, *more):
    data = base.parent / "examples.jsonl"
    return (f"adapt.model={base}", f"adapt.data=[{data}]", f"adapt.held_out=[{data}]", "adapt.row_tokens=64",
            "adapt.batch_tokens=64", "adapt.seconds=null", "adapt.rank=4", "adapt.lr=6e-3", *more)  # fmt: skip


def test_the_recipe_trains_an_adapter(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(RECIPE, *small(base, "adapt.epochs=12"), out=tmp_path / "run", json=True) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    artifact = stage["artifact"]
    assert (stage["do"], artifact["kind"], stage["status"]) == ("adapt", "adapter", "run")
    assert (
        artifact["metrics"]["examples"] == 12 and artifact["metrics"]["loss_after"] < artifact["metrics"]["loss_before"]
    )
    assert artifact["totals"]["tokens"] == artifact["metrics"]["tokens"] > 0
    loaded = load_model(base)
    assert len(read_adapter(artifact["path"], loaded.model).parts) == 14
    assert train(RECIPE, *small(base, "adapt.epochs=12", "adapt.threads=1"), out=tmp_path / "run", json=True) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["status"] == "cached"  # threads move no weight
    with open(tmp_path / "examples.jsonl", "a") as file:
        file.write(
            '\nno JSON\n{"messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}]}'
        )
    assert train(RECIPE, *small(base, "adapt.epochs=12"), out=tmp_path / "other", json=True) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["stages"][0]["artifact"]["metrics"]["examples"] == 13
    assert "conversations were left aside: bad_json" in said.err

    texts = []
    for adapter in (None, Path(artifact["path"])):
        assert generate(model=str(base), prompt="what follows red", max_tokens=8, temperature=0, adapter=adapter) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1]


def test_what_is_missing_is_named(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        load_recipe({"do": "adapt", "adapt": {"steps": 3}})
    assert caught.value.field == "adapt.data"
    with pytest.raises(UsageError) as caught:
        load_recipe({"do": "adapt", "adapt": {"data": ["x.jsonl"], "steps": 3, "rnak": 3}})
    assert caught.value.field == "adapt.rnak"
    for override, field in (("adapt.data=[nowhere.jsonl]", "data"), ("adapt.model=nowhere", "model")):
        with pytest.raises(DachengError) as caught:
            train(RECIPE, *small(base, override), out=tmp_path / "run")
        assert caught.value.field == field and "nowhere" in str(caught.value)
