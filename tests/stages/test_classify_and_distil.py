"""do: classify and do: distil, by their recipe, by the verb, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import classifier_toys as toys
import pytest

from dacheng.cli.main import main
from dacheng.errors import DachengError, UsageError
from dacheng.formats.classifiers import load_classifier
from dacheng.formats.provenance import weights_hash
from dacheng.life.expand import load_recipe
from dacheng.life.run import run_life
from dacheng.stages.base import SilentReporter

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
RECIPE = RECIPES / "compress" / "intents.yaml"


@pytest.fixture
def data(tmp_path) -> dict[str, str]:
    for name, seed in (("train", 0), ("test", 9)):
        texts = toys.texts(96, seed)
        lines = [json.dumps({"text": t, "label": y}) for t, y in zip(texts.texts, texts.labels)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}


def overrides(tmp_path, data, **more) -> list[str]:
    base = toys.directory(tmp_path / "base", layers=4)
    given = {
        "classify.model": base, "classify.data": f"[{data['train']}]", "classify.held_out": f"[{data['test']}]",
        "classify.lr": 3e-3, "classify.head_lr": 3e-3, "classify.epochs": 12,
        "distil.data": f"[{data['train']}]", "distil.held_out": f"[{data['test']}]", "distil.layers": 2,
        "distil.lr": 3e-3, "distil.epochs": 6,
    } | {f"distil.{key}": value for key, value in more.items()}  # fmt: skip
    return [f"{key}={value}" for key, value in given.items()]


@pytest.mark.slow  # where the kernels have to be compiled first
def test_the_recipe_makes_a_student_and_says_whether_it_was_worth_it(tmp_path, data):
    life = load_recipe(RECIPE, overrides(tmp_path, data, vocabulary=0, int8="true"))
    assert [(node.name, node.inputs) for node in life.nodes] == [
        ("classify", {}),
        ("distil", {"classifier": "classify"}),
    ]
    face = SilentReporter()
    result = run_life(life, tmp_path / "run", reporter=face)
    teacher, student = (stage.artifact for stage in result.stages)
    assert teacher.metrics["accuracy"]["estimate"] > 0.9
    made = student.metrics["comparison"]
    assert made["after"]["disk_bytes"] < 0.6 * made["before"]["disk_bytes"] and made["after"]["parameters"] > 0
    assert made["after"]["accuracy"]["estimate"] > 0.85 and made["sentence"].split(":")[0]
    assert any("after / before" in note for note in face.notes)
    assert load_classifier(student.path).is_packed
    assert json.loads((student.path / "dacheng.json").read_text())["parent"] == weights_hash(teacher.path)
    again = run_life(life, tmp_path / "run", reporter=SilentReporter())
    assert again.stages[1].artifact.fingerprint == student.fingerprint


def test_the_repositorys_own_intents_read(tmp_path):
    from dacheng.data.labelled import read_labelled
    from dacheng.records import Drops

    train, test = (read_labelled([RECIPES / "compress" / name], Drops())
                   for name in ("intents.jsonl", "intents_held_out.jsonl"))  # fmt: skip
    assert set(test.names) <= set(train.names) and "oos" in train.names and not set(train.texts) & set(test.texts)


def test_the_verb_distils_a_classifier(tmp_path, data, capsys):
    life = load_recipe(RECIPE, overrides(tmp_path, data, epochs=1))
    teacher = run_life(life, tmp_path / "run", reporter=SilentReporter()).stages[0].artifact.path
    code = main(["compress", "distil", str(teacher), data["train"], "--layers", "1", "--epochs", "2", "--held-out",
                 data["test"], "--out", str(tmp_path / "student"), "--json"])  # fmt: skip
    assert code == 0
    told = json.loads(capsys.readouterr().out)
    assert "accuracy changes by" in json.dumps(told)


def test_texts_without_a_label_are_taught_by_the_teacher_alone(tmp_path, data):
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"text": t}) + "\n" for t in toys.texts(96, 5).texts), encoding="utf-8")
    life = load_recipe(RECIPE, [*overrides(tmp_path, data), f"distil.data=[{bare}]", "distil.weights={soft: 1.0}",
                                "distil.held_out=[]"])  # fmt: skip
    _, student = run_life(life, tmp_path / "run", reporter=SilentReporter()).stages
    assert student.artifact.metrics["texts"] == 96 and student.artifact.metrics["drops"]["dropped"] == {}


@pytest.mark.parametrize(
    ("section", "changes", "field"),
    [
        ("classify", {"classify.data": "[]"}, "data"),
        ("classify", {"classify.pooling": "max"}, "pooling"),
        ("distil", {"distil.weights.soft": 0}, "soft"),
        ("distil", {"distil.epochs": "null"}, "steps"),
        ("distil", {"distil.weights.state_kind": "same"}, "state_kind"),
    ],
)
def test_knobs_that_make_no_run_are_refused_before_it(section, changes, field):
    with pytest.raises(UsageError) as error:
        load_recipe(RECIPE, [f"{key}={value}" for key, value in changes.items()])
    assert error.value.field.split(".")[-1] == field


def test_knobs_of_the_other_kind_and_no_teacher_are_refused_by_name(tmp_path, data):
    life = load_recipe(RECIPE, overrides(tmp_path, data, beta=0.5))
    with pytest.raises(UsageError, match="no such knob"):
        run_life(life, tmp_path / "run", reporter=SilentReporter())
    alone = load_recipe({"do": "distil", "distil": {"data": [data["train"]], "steps": 1}})
    with pytest.raises(UsageError, match="which teacher"):
        run_life(alone, tmp_path / "b", reporter=SilentReporter())
    missing = load_recipe({"do": "classify", "classify": {"model": str(tmp_path), "data": [data["train"]]}})
    with pytest.raises(DachengError, match="is no model"):
        run_life(missing, tmp_path / "c", reporter=SilentReporter())
