from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng import recipes, yaml_text
from dacheng.errors import DachengError, UsageError


@dataclass
class Optimizer:
    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass
class Budget:
    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise UsageError("at least one step", field="steps", value=self.steps, remedy="raise it")


@dataclass
class Recipe:
    source: Path = Path("docs")
    seed: int = 0
    compile: bool = False
    names: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    optimizer: Optimizer = field(default_factory=Optimizer)
    budget: Budget | None = None
    mixed: int | str = 0
    note: str = ""


@dataclass
class Required:
    path: Path
    size: int = 1


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def failure(cls: type, values: Any, overrides: tuple[str, ...] = ()) -> UsageError:
    with pytest.raises(UsageError) as caught:
        recipes.load(cls, values, overrides)
    return caught.value


def test_yaml_then_overrides_in_order(tmp_path):
    path = write(tmp_path, "seed: 3\noptimizer: {lr: 1e-3, name: muon}\nbudget:\n  minutes: 2\n")
    recipe = recipes.load(Recipe, path, ["optimizer.lr=2e-3", "budget.steps=7", "optimizer.lr=5e-4", "compile=true"])
    assert recipe == Recipe(seed=3, compile=True, optimizer=Optimizer("muon", 5e-4), budget=Budget(2.0, 7))


def test_values_are_converted_but_never_guessed():
    recipe = recipes.load(Recipe, {"seed": 1e6, "optimizer": {"lr": "1e-3", "betas": [0, 1]}, "source": "a/b"})
    assert recipe.seed == 1_000_000 and type(recipe.seed) is int
    assert recipe.optimizer.lr == 1e-3 and recipe.optimizer.betas == (0.0, 1.0)
    assert recipe.source == Path("a/b")
    assert recipes.load(Recipe, {"mixed": "3"}).mixed == "3" and recipes.load(Recipe, {"mixed": 3}).mixed == 3


@pytest.mark.parametrize(
    ("values", "path", "expected"),
    [
        ({"seed": True}, "seed", "expected int"),
        ({"seed": 1.5}, "seed", "expected int"),
        ({"seed": "3"}, "seed", "expected int"),
        ({"compile": 1}, "compile", "expected bool"),
        ({"note": 5}, "note", 'put it in quotes: "5"'),
        ({"note": None}, "note", "expected str"),
        ({"names": "a"}, "names", "expected list of str"),
        ({"names": ["a", 1]}, "names.1", "expected str"),
        ({"weights": {"en": "much"}}, "weights.en", "expected float"),
        ({"weights": [1]}, "weights", "expected mapping of str to float"),
        ({"source": 1}, "source", "expected a path"),
        ({"optimizer": "adamw"}, "optimizer", "expected a section with keys name, lr, betas"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr", "expected float"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr", "expected float"),
        ({"optimizer": {"lr": True}}, "optimizer.lr", "expected float"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas", "expected list of float, float"),
        ({"optimizer": {"name": "mun"}}, "optimizer.name", "expected one of adamw, muon; did you mean muon?"),
        ({"budget": {"minutes": "soon"}}, "budget.minutes", "expected float or null"),
        ({"budget": 3}, "budget", "expected a section with keys minutes, steps or null"),
    ],
)
def test_wrong_type_names_path_value_and_expected(values, path, expected):
    error = failure(Recipe, values)
    assert error.field == path
    assert expected in error.remedy
    inner: Any = values
    for key in path.split("."):
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    assert error.value == inner or error.value != error.value  # NaN differs from itself


@pytest.mark.parametrize(
    ("values", "path", "near"),
    [
        ({"sed": 1}, "sed", "did you mean seed?"),
        ({"optimizer": {"lrr": 1}}, "optimizer.lrr", "did you mean optimizer.lr?"),
        ({"budget": {"minute": 1}}, "budget.minute", "did you mean budget.minutes?"),
        ({"lr": 1}, "lr", "did you mean optimizer.lr?"),  # the right key one level too high
        ({"steps": 1}, "steps", "did you mean budget.steps?"),
        ({"qqqq": 1}, "qqqq", "known here: source, seed"),
        ({1: 1}, "1", "known here"),
    ],
)
def test_unknown_key_names_path_value_and_nearest(values, path, near):
    error = failure(Recipe, values)
    assert (error.problem, error.field) == ("unknown key", path)
    assert near in error.remedy
    assert error.exit_code == 2


def test_what_a_section_checks_itself_is_reported_with_its_full_path():
    error = failure(Recipe, {"budget": {"steps": 0}})
    assert (error.problem, error.field, error.value) == ("at least one step", "budget.steps", 0)


def test_missing_key_and_empty_section():
    assert failure(Required, {}).field == "path"
    assert "a path" in failure(Required, {}).remedy
    assert recipes.load(Recipe, {"optimizer": None}).optimizer == Optimizer()
    assert recipes.load(Recipe, {"budget": None}).budget is None


@pytest.mark.parametrize(
    "override", ["seed", "=3", "a..b=3", ".a=1", "names=[1", 'note="x', "optimizer={lr: 1, lr: 2}"]
)
def test_malformed_overrides(override):
    assert failure(Recipe, {}, (override,)).exit_code == 2


def test_override_values_are_scalars_or_flow_collections():
    def set_(override: str) -> Any:
        return recipes.split_override(override)[1]

    assert set_("a=# not a comment") == "# not a comment"
    assert set_("a=def f(x): return") == "def f(x): return"
    assert set_("a=no") == "no" and set_("a=1:30") == "1:30" and set_("a=2024-01-01") == "2024-01-01"
    assert set_("a=") is None and set_("a=null") is None and set_("a=true") is True
    assert set_("a=1e-3") == 1e-3 and set_("a=1_000") == 1000 and set_('a="3"') == "3"
    assert set_("a=[1, two]") == [1, "two"] and set_("a={b: 1}") == {"b": 1}
    assert set_("a=x=y") == "x=y"


def test_overrides_reach_into_lists_and_refuse_to_reach_into_values():
    assert recipes.apply_overrides({"a": [{"b": 1}, 2]}, ["a.0.b=5", "a.1=6"]) == {"a": [{"b": 5}, 6]}
    for override, path in (("a.b=1", "a.b"), ("l.x=1", "l.x"), ("l.5=1", "l.5")):
        with pytest.raises(UsageError) as caught:
            recipes.apply_overrides({"a": 3, "l": [1]}, [override])
        assert caught.value.field == path


def test_overrides_leave_their_source_alone():
    source = {"optimizer": {"lr": 1.0}, "names": ["a"]}
    recipes.load(Recipe, source, ["optimizer.lr=2", "names.0=b"])
    assert source == {"optimizer": {"lr": 1.0}, "names": ["a"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\nseed: 2\n", "'seed' is given twice"),
        ("optimizer: {lr: 1, lr: 1}\n", "'lr' is given twice"),
        ("- 1\n", "a recipe is a mapping"),
        ("seed: [1\n", "not valid YAML"),
        ("seed: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("? [a]\n: 1\n", "not valid YAML"),
        ("names: &a [*a]\n", "nested too deeply"),
        ("seed: " + "9" * 5000 + "\n", "not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, says):
    error = failure(Recipe, write(tmp_path, text))
    assert says in str(error)


def test_missing_undecodable_and_misspelt_files(tmp_path):
    write(tmp_path, "seed: 1\n")
    assert "did you mean" in failure(Recipe, tmp_path / "recpe.yaml").remedy
    assert "cannot be read" in failure(Recipe, tmp_path).problem
    (tmp_path / "latin.yaml").write_bytes(b"note: caf\xe9\n")
    assert "byte 9" in failure(Recipe, tmp_path / "latin.yaml").problem


def test_merge_keys_may_be_overridden_beside_them(tmp_path):
    path = write(tmp_path, "weights: &w {a: 1}\noptimizer:\n  <<: {lr: 1, name: muon}\n  lr: 2\n")
    assert recipes.load(Recipe, path).optimizer == Optimizer("muon", 2.0)


texts = st.text(max_size=20)
floats = st.floats(allow_nan=False)
recipe_strategy = st.builds(
    Recipe,
    source=st.text(min_size=1, max_size=8).map(Path).filter(lambda p: str(p) != ""),
    seed=st.integers(),
    compile=st.booleans(),
    names=st.lists(texts, max_size=4),
    weights=st.dictionaries(texts, floats, max_size=4),
    optimizer=st.builds(Optimizer, st.sampled_from(["adamw", "muon"]), floats, st.tuples(floats, floats)),
    budget=st.none() | st.builds(Budget, st.none() | floats, st.none() | st.integers(1)),
    mixed=st.integers() | texts,
    note=st.sampled_from(["no", "1e-3", "1:30", "~", "<<", "a\nb ", "  x\n", "# x", "0o7", "010", "=", "\x85"]) | texts,
)


@settings(deadline=None, max_examples=60)
@given(recipe_strategy)
def test_dump_and_load_are_inverse(recipe):
    text = recipes.dump(recipe)
    assert recipes.load(Recipe, yaml_text.parse(text)) == recipe
    assert recipes.load(Recipe, recipes.to_dict(recipe)) == recipe
    assert recipes.load(Recipe, yaml.safe_load(text)) == recipe  # and a YAML 1.1 reader sees the same


@settings(deadline=None, max_examples=60)
@given(recipe_strategy, recipe_strategy)
def test_fingerprint_is_equality(a, b):
    assert (recipes.fingerprint(a) == recipes.fingerprint(b)) == (recipes.dump(a) == recipes.dump(b))


def test_fingerprint_ignores_key_order_and_refuses_what_is_not_data():
    assert recipes.fingerprint({"a": 1, "b": [1, 2]}) == recipes.fingerprint({"b": (1, 2), "a": 1})
    assert recipes.fingerprint({"a": 1}) != recipes.fingerprint({"a": 1.0})
    with pytest.raises(TypeError):
        recipes.fingerprint(object())


def test_resolve_object(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("class Exact:\n    limit = 3\n")
    (tmp_path / "my_broken.py").write_text("import a_module_that_is_absent\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert recipes.resolve_object("my_rewards:Exact").__name__ == "Exact"
    assert recipes.resolve_object("my_rewards:Exact.limit") == 3
    with pytest.raises(UsageError, match="did you mean Exact"):
        recipes.resolve_object("my_rewards:Exakt")
    for reference in ("my_rewards", "os.system('x')", "absent_package.x:Y", "a:b:c"):
        with pytest.raises(UsageError):
            recipes.resolve_object(reference)
    with pytest.raises(DachengError, match="a_module_that_is_absent") as caught:
        recipes.resolve_object("my_broken:X")
    assert not isinstance(caught.value, UsageError)


def test_importing_recipes_is_light():
    code = "import sys, dacheng.recipes; print([m for m in ('torch', 'numpy', 'pydantic', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
