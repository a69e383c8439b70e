from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import toys

from dacheng import yaml_text
from dacheng.errors import DachengError, Locked
from dacheng.life import history
from dacheng.life.graph import parse
from dacheng.life.run import LifeResult, run_life
from dacheng.stages.base import SilentReporter
from dacheng.train.lock import OutputLock

CHAIN = {
    "name": "chain",
    "stages": [
        {"name": "a", "do": "toys:Toy"},
        {"name": "b", "do": "toys:Add", "from": "a", "value": 10},
        {"name": "c", "do": "toys:Add", "from": "b", "value": 100},
        {"name": "alone", "do": "toys:Toy"},
    ],
}


def go(out: Path, *overrides: str, **options) -> LifeResult:
    return run_life(parse(CHAIN, overrides), out, **options)


def ran() -> list[str]:
    names = [name for name, _ in toys.Toy.calls]
    toys.Toy.calls.clear()
    return names


def total(out: Path, name: str) -> int:
    return int((out / "stages" / name / "total.txt").read_text())


def test_everything_once_then_nothing(tmp_path):
    result = go(tmp_path)
    assert ran() == ["a", "b", "c", "alone"]
    assert [stage.status for stage in result.stages] == ["run"] * 4
    assert result.stages[2].artifact.metrics == {"total": 111}
    again = go(tmp_path)
    assert ran() == []
    assert [stage.status for stage in again.stages] == ["cached"] * 4
    assert again.stages[2].artifact.to_dict() == result.stages[2].artifact.to_dict()


def test_only_what_changed_and_what_depends_on_it_is_run_again(tmp_path):
    go(tmp_path)
    ran()
    result = go(tmp_path, "b.value=20")
    assert ran() == ["b", "c"]
    assert [stage.status for stage in result.stages] == ["cached", "run", "run", "cached"]
    assert total(tmp_path, "c") == 121
    go(tmp_path, "b.value=20", "c.labels.note=x")
    assert ran() == ["c"]


def test_a_replaced_result_is_kept_and_put_back(tmp_path):
    go(tmp_path)
    reporter = SilentReporter()
    go(tmp_path, "c.value=200", reporter=reporter)
    assert total(tmp_path, "c") == 211
    kept = list((tmp_path / "replaced").iterdir())
    assert [folder.name.split("-")[0] for folder in kept] == ["c"] and str(kept[0]) in "".join(reporter.notes)
    ran()
    result = go(tmp_path)
    assert ran() == [] and total(tmp_path, "c") == 111
    assert [stage.status for stage in result.stages] == ["cached"] * 4
    for value in (300, 400, 500):  # one replaced result a stage, not a growing heap
        go(tmp_path, f"c.value={value}")
    assert len(list((tmp_path / "replaced").iterdir())) == 1
    for value in (1, 2):  # failed attempts do not push a good result out
        with pytest.raises(DachengError):
            go(tmp_path, "c.fail=true", f"c.value={value}")
    ran()
    go(tmp_path, "c.value=500")
    assert ran() == []


def test_an_interrupted_life_goes_on_in_the_same_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, "b.interrupt=true")
    assert ran() == ["a", "b"]
    state = json.loads((tmp_path / "stages" / "b" / "stage.json").read_text())
    assert state["status"] == "interrupted"
    result = go(tmp_path, "b.interrupt=true")
    assert ran() == ["b", "c", "alone"]
    assert (tmp_path / "stages" / "b" / "begun.txt").read_text() == "xx"  # what it had begun was still there
    assert result.stages[1].artifact.totals["attempts"] == 2
    assert result.stages[1].artifact.totals["tokens"] == 20
    assert result.totals["statuses"] == {"done": 4, "interrupted": 1}


def test_a_failed_stage_says_so_and_is_tried_again(tmp_path):
    seen = []
    with pytest.raises(DachengError, match="it failed"):
        go(tmp_path, "b.fail=true", on_stage=lambda stage: seen.append((stage.name, stage.status)))
    assert seen == [("a", "run"), ("b", "failed")]
    assert ran() == ["a", "b"]
    with pytest.raises(DachengError):
        go(tmp_path, "b.fail=true")
    assert ran() == ["b"]
    go(tmp_path)  # mended: what failed under another configuration is not gone on with
    assert (tmp_path / "stages" / "b" / "begun.txt").read_text() == "x"


@pytest.mark.parametrize("damage", ["artifact gone", "artifact torn", "result gone", "stage gone", "state torn"])
def test_a_damaged_result_is_made_again(tmp_path, damage):
    go(tmp_path)
    ran()
    folder = tmp_path / "stages" / "b"
    if damage == "artifact gone":
        (folder / "artifact.json").unlink()
    elif damage == "artifact torn":
        (folder / "artifact.json").write_text('{"kind": "numb')
    elif damage == "result gone":
        (folder / "total.txt").unlink()
    elif damage == "stage gone":
        shutil.rmtree(folder)
    else:
        (folder / "stage.json").write_text("")
        (folder / "artifact.json").unlink()
    assert go(tmp_path).stages[1].status == "run"
    assert ran() == ["b"]


def test_a_life_can_be_moved(tmp_path):
    go(tmp_path / "one")
    ran()
    (tmp_path / "one").rename(tmp_path / "two")
    result = go(tmp_path / "two")
    assert ran() == []
    assert result.stages[0].artifact.path == tmp_path / "two" / "stages" / "a" / "total.txt"


def test_two_writers_are_kept_apart(tmp_path):
    with OutputLock(tmp_path), pytest.raises(Locked):
        go(tmp_path)
    assert ran() == []
    go(tmp_path)


def test_the_resolved_recipe_and_the_ledger_are_written(tmp_path):
    result = go(tmp_path, "a.value=3")
    written = yaml_text.read_mapping(tmp_path / "life.yaml")
    assert written["stages"][0] == {
        "name": "a",
        "do": "toys:Toy",
        "value": 3,
        "fail": False,
        "interrupt": False,
        "labels": {},
        "threads": 1,
    }
    assert result.totals["tokens"] == 40 and result.totals["entries"] == 4
    assert sum(stage.artifact.totals["wall_s"] for stage in result.stages) == pytest.approx(result.totals["wall_s"])
    assert result.this_run["attributed"] == pytest.approx(result.totals["wall_s"], abs=0.01)
    assert json.loads(json.dumps(result.to_dict()))["stages"][0]["artifact"]["parents"] == {}
    b = result.stages[1].artifact
    assert b.parents == {"left": result.stages[0].artifact.fingerprint}


def test_every_run_is_in_the_history(tmp_path):
    go(tmp_path / "x")
    with pytest.raises(DachengError):
        go(tmp_path / "y", "c.fail=true")
    with history.history_path().open("a") as file:
        file.write('{"name": "torn')
    go(tmp_path / "z")
    found, unreadable = history.runs()
    assert [(run.name, run.path.name, run.status) for run in found] == [
        ("chain", "x", "done"), ("chain", "y", "failed"), ("chain", "z", "done"),
    ]  # fmt: skip
    assert unreadable == 1
    assert found[0].metrics["c.total"] == 111
    shutil.rmtree(tmp_path / "x")
    assert [run.exists for run in history.runs()[0]] == [False, True, True]


def test_models_are_found_by_name(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / f"m{number}").mkdir()
        history.remember("net", tmp_path / "run", "done", model=tmp_path / f"m{number}")
    history.remember("net", tmp_path / "run", "failed")
    assert history.model_named("net") == tmp_path / "m3"
    (tmp_path / "m3").rmdir()
    assert history.model_named("net") == tmp_path / "m2"
    assert history.model_named("nothing") is None
