from __future__ import annotations

import pytest
import toys

from dacheng import recipes, yaml_text
from dacheng.errors import UsageError
from dacheng.life.expand import load_recipe
from dacheng.life.graph import parse


def stage(name: str, do: str = "Toy", **keys) -> dict:
    return {"name": name, "do": f"toys:{do}", **keys}


def life(*stages: dict, name: str = "test") -> dict:
    return {"name": name, "stages": list(stages)}


def failure(values, overrides=()) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse(values, overrides)
    assert caught.value.exit_code == 2
    return caught.value


def test_parents_come_first_whatever_the_order_in_the_file():
    parsed = parse(life(stage("c", "Add", **{"from": ["b", "a"]}), stage("b", "Add", **{"from": "a"}), stage("a")))
    assert [node.name for node in parsed.nodes] == ["a", "b", "c"]
    assert parsed.nodes[2].inputs == {"left": "b", "right": "a"}


def test_from_is_a_stage_a_list_or_a_mapping():
    for given in ("a", ["a"], {"left": "a"}):
        assert parse(life(stage("a"), stage("b", "Add", **{"from": given}))).nodes[1].inputs == {"left": "a"}
    both = parse(life(stage("right"), stage("left"), stage("c", "Add", **{"from": ["right", "left"]})))
    assert both.nodes[2].inputs == {"right": "right", "left": "left"}  # a stage of an input's name goes there


@pytest.mark.parametrize(
    ("stages", "field", "says"),
    [
        ([stage("b", "Add", **{"from": ["aa"]}), stage("a")], "b.from.0", "did you mean a?"),
        ([stage("b", "Add", **{"from": {"left": "x"}}), stage("a")], "b.from.left", "the stages: b, a"),
        ([stage("b", "Add", **{"from": {"up": "a"}}), stage("a")], "b.from.up", "b takes left: number, right: number"),
        ([stage("b", "Add", **{"from": "o"}), stage("o", "Other")], "b.from.0", "other from o does not fit here"),
        ([stage("b", "Add", **{"from": ["a", "a", "a"]}), stage("a")], "b.from.2", "does not fit"),
        ([stage("b", "Add"), stage("a")], "b.from.left", "add from: {left: a}"),
        ([stage("b", "Toy", **{"from": "a"}), stage("a")], "b.from.0", "b takes nothing"),
        ([stage("a"), stage("a")], "stages.1.name", "give one of them another name"),
        ([stage("../a")], "stages.0.name", "letters, digits"),
        ([stage("a", "Toy", value=1.5)], "a.value", "expected int"),
        ([stage("a", "Toy", valeu=1)], "a.valeu", "did you mean a.value?"),
        ([{"name": "a", "do": "tokeniser"}], "a.do", "did you mean tokenizer?"),
        ([{"name": "a", "do": 3}], "a.do", "add `do: train`"),
        ([{"name": "a", "do": "toys:Nothing"}], "a.do", "toys has no Nothing"),
        ([{"name": "a", "do": "toys:Input"}], "a.do", "it lacks VERSION"),
        (["a"], "stages.0", "a stage is a mapping"),
    ],
)
def test_what_cannot_be(stages, field, says):
    error = failure(life(*stages))
    assert error.field == field
    assert says in str(error)


def test_cycles_are_named():
    cycle = failure(
        life(stage("a", "Add", **{"from": "c"}), stage("b", "Add", **{"from": "a"}), stage("c", "Add", **{"from": "b"}))
    )
    assert cycle.value in ("a -> b -> c -> a", "b -> c -> a -> b", "c -> a -> b -> c")
    assert failure(life(stage("a", "Add", **{"from": "a"}))).value == "a -> a"


def test_a_life_has_stages_and_no_other_keys():
    assert failure({"name": "x"}).field == "stages"
    assert failure({"name": "x", "stages": []}).field == "stages"
    assert failure({"name": "x", "stage": [stage("a")]}).remedy == "did you mean stages?"
    assert failure(life(stage("a"), name="a/b")).field == "name"


def test_overrides_are_addressed_by_stage():
    parsed = parse(life(stage("a"), stage("b")), ["b.value=7", "b.labels.x=y"])
    assert [node.config.value for node in parsed.nodes] == [1, 7]
    assert parsed.nodes[1].config.labels == {"x": "y"}
    assert "did you mean a?" in failure(life(stage("a")), ["aa.value=1"]).remedy
    assert failure(life(stage("a")), ["value=1"]).field == "value"
    assert failure(life(stage("a")), ["a=1"]).field == "a"
    assert failure(life(stage("a")), ["a.value=x"]).field == "a.value"


def test_a_resolved_life_reads_back_as_itself(tmp_path):
    first = parse(life(stage("a"), stage("b", "Add", value=3, **{"from": "a"})), ["a.value=5"])
    path = tmp_path / "life.yaml"
    path.write_text(recipes.dump(first.resolved()))
    again = load_recipe(path)
    assert again.resolved() == first.resolved() == yaml_text.parse(path.read_text())
    assert again.keys == first.keys


def test_a_life_without_a_name_has_that_of_its_file(tmp_path):
    path = tmp_path / "quick.yaml"
    path.write_text("stages:\n  - {name: a, do: 'toys:Toy'}\n")
    assert load_recipe(path).name == "quick"


def test_fingerprints_follow_configuration_parents_code_and_externals(tmp_path, monkeypatch):
    def keys(*overrides: str) -> dict[str, str]:
        chain = life(stage("a", "Outside"), stage("b", "Add", **{"from": "a"}), stage("c"))
        return parse(chain, overrides).keys

    toys.Outside.path = tmp_path / "outside.txt"
    toys.Outside.path.write_text("1")
    first = keys()
    assert keys() == first
    assert keys("b.threads=2") == first  # decides no result
    changed = keys("b.value=2")
    assert changed["a"] == first["a"] and changed["b"] != first["b"] and changed["c"] == first["c"]
    changed = keys("a.value=2")
    assert changed["a"] != first["a"] and changed["b"] != first["b"] and changed["c"] == first["c"]
    toys.Outside.path.write_text("2")
    outside = keys()
    assert outside["a"] != first["a"] and outside["b"] != first["b"] and outside["c"] == first["c"]
    monkeypatch.setattr(toys.Toy, "VERSION", 2)
    assert all(keys()[name] != outside[name] for name in "abc")
