"""do: prune and do: merge, as recipes and as verbs, on a small model that has learnt a few texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dacheng.cli.main import main
from dacheng.compress.prune.healing import HealConfig, heal
from dacheng.compress.prune.weights import linear_maps, masks_of
from dacheng.compress.upcycle import upcycle
from dacheng.errors import DachengError, UsageError
from dacheng.formats.model_directory import load_model, save_model
from dacheng.life.expand import load_recipe
from dacheng.life.run import run_life
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.stages.base import SilentReporter
from dacheng.text import train_tokenizer

SENTENCES = [
    f"The {a} {b} sees the {c} {d} and goes home to the {b}."
    for a in ("old", "small", "red", "quiet")
    for b in ("fox", "hen", "cat")
    for c in ("tall", "young", "grey")
    for d in ("tree", "house", "hill")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("prune")
    (out / "text.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    (out / "held.txt").write_text("\n".join(reversed(SENTENCES[::3])) * 2, encoding="utf-8")
    tokenizer = train_tokenizer([*SENTENCES, "unused words are elsewhere " * 30], vocab_size=360)
    traits = DecoderTraits(vocab_size=tokenizer.vocab_size, width=48, layers=4, heads=4, kv_heads=2, head_width=12,
                           mlp_width=96, max_positions=128)  # fmt: skip
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(0))
    ids = [tokenizer.encode("\n".join(SENTENCES))]
    config = HealConfig(how="full", steps=80, lr=5e-3, context_length=64, batch_rows=8)
    assert heal(model, ids, out / "first", config).loss_after < 1.5
    save_model(out / "model", model, tokenizer)
    for seed in (1, 2):
        tuned = load_model(out / "model").model.float()
        heal(tuned, ids, out / f"t{seed}", HealConfig(how="full", steps=5, context_length=64, seed=seed))
        save_model(out / f"tuned{seed}", tuned, tokenizer)
    return out


def run(folder, out, do="prune", **section):
    if do == "prune":
        section = {"model": str(folder / "model"), "text": str(folder / "text.txt"), "rows": 8, "length": 48} | section
    result = run_life(load_recipe({"do": do, "name": "small", do: {"judge": False} | section}), out)
    path = out / "stages" / do
    return result, path / "model", json.loads((path / f"{do}.json").read_text())


def size(path):
    return (path / "model.safetensors").stat().st_size


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_zeros(folder, tmp_path, method):
    _, path, report = run(folder, tmp_path, method=method, sparsity="2:4" if method == "wanda" else 0.5)
    loaded = load_model(path)
    assert len(masks_of(loaded.model)) == 28 and abs(report["sparsity"] - 0.5) < 0.01
    assert size(path) < 0.75 * size(folder / "model") and not (tmp_path / "stages/prune/state").exists()
    assert loaded.provenance["parent"] and loaded.provenance["recipe"]["prune"]["method"] == method


def test_a_pruned_model_is_pruned_on(folder, tmp_path):
    _, first, _ = run(folder, tmp_path / "a", method="magnitude", sparsity=0.3)
    _, second, report = run(folder, tmp_path / "b", method="wanda", sparsity=0.6, model=str(first))
    assert any("30% zeros already" in note for note in report["notes"])
    assert size(second) < size(first) and abs(report["sparsity"] - 0.6) < 0.02


@pytest.mark.parametrize(("method", "settings", "trait", "value"), [
    ("layers", {"count": 1}, "layers", 3), ("heads", {"count": 2, "measure": "gradient"}, "heads", 2),
    ("neurons", {"count": 60}, "mlp_width", 60), ("width", {"count": 40}, "width", 40),
])  # fmt: skip
def test_parts(folder, tmp_path, method, settings, trait, value):
    _, path, report = run(folder, tmp_path, method=method, **settings)
    model = load_model(path).model
    assert getattr(model.traits, trait) == value and size(path) < size(folder / "model")
    assert report["parameters"][1] == model.params()["total"] < report["parameters"][0]


def test_a_model_that_its_family_cannot_say_any_more_is_told(folder, tmp_path):
    """GPT-2 has no width of a head: with fewer of them it is another network, and only this program reads it."""
    tokenizer = load_model(folder / "model").tokenizer
    traits = DecoderTraits(vocab_size=tokenizer.vocab_size, width=48, layers=2, heads=4, norm="layer",
                           positions="learned", max_positions=64, activation="gelu_tanh", attention_bias=True,
                           mlp_bias=True)  # fmt: skip
    save_model(tmp_path / "gpt2", Decoder(traits).init_weights(), tokenizer)
    text = str(folder / "text.txt")
    section = {"model": str(tmp_path / "gpt2"), "text": text, "rows": 4, "length": 32, "judge": False}
    for method, count, told in (("heads", 2, True), ("neurons", 96, False)):
        face = SilentReporter()
        life = load_recipe({"do": "prune", "prune": section | {"method": method, "count": count}})
        run_life(life, tmp_path / method, reporter=face)
        assert any("stored as dacheng, which transformers does not read" in note for note in face.notes) == told


def test_vocabulary(folder, tmp_path):
    _, path, report = run(folder, tmp_path, method="vocabulary")
    loaded, whole = load_model(path), load_model(folder / "model")
    assert report["tokens"] == [whole.tokenizer.vocab_size, loaded.tokenizer.vocab_size]
    assert loaded.model.traits.vocab_size == loaded.tokenizer.vocab_size < whole.tokenizer.vocab_size


def test_a_vocabulary_keeps_the_line_breaks_of_its_text(folder, tmp_path):
    text = "The old fox sees\n\nthe red hen\n\n"
    tokenizer = train_tokenizer([text * 40, "unused words are elsewhere " * 30], vocab_size=330)
    traits = DecoderTraits(vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2)
    save_model(tmp_path / "m", Decoder(traits).init_weights(), tokenizer)
    (tmp_path / "t.txt").write_text(text * 3, encoding="utf-8")
    _, path, _ = run(folder, tmp_path / "out", method="vocabulary", model=str(tmp_path / "m"),
                     text=str(tmp_path / "t.txt"))  # fmt: skip
    found, expected = ([t.id_to_token(i) for i in t.encode(text)] for t in (load_model(path).tokenizer, tokenizer))
    assert found == expected


def test_low_rank(folder, tmp_path):
    _, path, report = run(folder, tmp_path, method="low_rank", ratio=0.5)
    assert report["kept"] < 0.55 and size(path) < 0.85 * size(folder / "model")


@pytest.mark.parametrize("by", ["text", "teacher"])
def test_healing_after_a_layer(folder, tmp_path, by):
    _, path, report = run(folder, tmp_path, method="layers", count=2, heal_steps=30, heal_lr=5e-3, heal_by=by)
    healing = report["healing"]
    assert healing["loss_after"] < 0.9 * healing["loss_before"] and not list(tmp_path.rglob("checkpoints"))
    assert all(type(m).__name__ == "Dense" for m in linear_maps(load_model(path).model).values())


def test_zeros_can_be_stored_for_other_programs(folder, tmp_path):
    _, path, _ = run(folder, tmp_path, method="magnitude", sparse=False)
    assert "quantization_config" not in json.loads((path / "config.json").read_text())
    assert len(masks_of(load_model(path).model)) == 28


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_ties"])
def test_merging(folder, tmp_path, method):
    models = [str(folder / "tuned1"), str(folder / "tuned2")]
    _, path, report = run(folder, tmp_path, "merge", models=models, method=method, base=str(folder / "model"))
    merged, one = load_model(path).model, load_model(models[0]).model
    assert report["models"] == models and merged.traits == one.traits
    gap = max(float((a - b).detach().abs().max()) for a, b in zip(merged.parameters(), one.parameters()))
    assert 0 < gap < 0.1


def test_a_base_that_is_not_used_is_said_and_so_is_a_weight_of_an_arc(folder, tmp_path):
    face, models = SilentReporter(), [str(folder / "tuned1"), str(folder / "tuned2")]
    section = {"models": models, "method": "linear", "base": str(folder / "model")}
    run_life(load_recipe({"do": "merge", "merge": {"judge": False} | section}), tmp_path / "a", reporter=face)
    assert any("no use for a base" in note for note in face.notes)
    with pytest.raises(UsageError, match="told by t"):
        run(folder, tmp_path / "b", "merge", models=models, method="slerp", weights=[0.2, 0.8])


def test_upcycling(folder, tmp_path):
    _, path, _ = run(folder, tmp_path, "merge", models=[str(folder / "model")], method="upcycle", experts=4)
    assert load_model(path).model.traits.moe.experts == 4


@pytest.mark.parametrize(("section", "problem"), [
    ({"method": "layers"}, "how many layers go"), ({"text": None}, "looks at what"), ({"sparsity": "2"}, "sparsity"),
    ({"method": "layers", "count": 4}, "one stays"), ({"rows": 10**6}, "too short"),
    ({"method": "vocabulary", "heal_by": "teacher"}, "tokens that are gone"), ({"model": "nowhere"}, "is no model"),
    ({"method": "low_rank", "heal_steps": 3}, "not healed"), ({"count": 3}, "nothing to count"),
    ({"judge": True, "judge_text": "nowhere.txt"}, "text cannot be read.*nowhere.txt"), ({"dtype": "float"}, "dtype"),
])  # fmt: skip
def test_bad_input(folder, tmp_path, section, problem):
    with pytest.raises(DachengError, match=problem):
        run(folder, tmp_path, **section)


def test_models_of_different_tokenizers(folder, tmp_path):
    other = train_tokenizer(["something else entirely " * 20], vocab_size=280)
    loaded = load_model(folder / "model")
    save_model(tmp_path / "other", loaded.model, other)
    with pytest.raises(DachengError, match="cut texts differently"):
        run(folder, tmp_path / "out", "merge", models=[str(folder / "model"), str(tmp_path / "other")])
    with pytest.raises(UsageError, match="one model"):
        run(folder, tmp_path / "out2", "merge", models=[str(folder / "model")] * 2, method="upcycle")


def test_the_recipes_are_of_these_stages():
    recipes = Path(__file__).resolve().parents[2] / "recipes" / "compress"
    for name in ("prune", "merge"):
        life = load_recipe(recipes / f"{name}.yaml")
        assert [node.do for node in life.nodes] == [name]


def test_the_recipe_runs(folder, tmp_path):
    """recipes/compress/prune.yaml, on a small model."""
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "compress" / "prune.yaml"
    small = {"count": 1, "rows": 4, "length": 48, "heal_steps": 2, "judge": "false"}
    overrides = [f"prune.{key}={value}" for key, value in small.items()]
    overrides += [f"prune.model={folder / 'model'}", f"prune.text={folder / 'text.txt'}"]
    run_life(load_recipe(recipe, overrides), tmp_path)
    assert load_model(tmp_path / "stages/prune/model").model.traits.layers == 3


# --- verbs ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_prune_ends_in_a_table(folder, tmp_path, capsys):
    code = main(["compress", "prune", str(folder / "model"), "--method", "layers", "--count", "1", "--text",
                 str(folder / "text.txt"), "--judge-text", str(folder / "held.txt"), "--out", str(tmp_path / "run"),
                 "--json"])  # fmt: skip
    shown = capsys.readouterr()
    assert code == 2 and "too short" in shown.err  # 32 stretches of 512 tokens are more than there is
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES * 20), encoding="utf-8")
    code = main(["compress", "prune", str(folder / "model"), "--method", "layers", "--count", "1", "--text",
                 str(tmp_path / "text.txt"), "--judge-text", str(folder / "held.txt"),
                 "--out", str(tmp_path / "run")])  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0 and "bytes on disk" in shown.err and "perplexity" in shown.err
    assert "orth it" in shown.err or "Only where" in shown.err


def test_experts_verb(folder, tmp_path, capsys):
    loaded = load_model(folder / "model")
    save_model(tmp_path / "moe", upcycle(loaded.model, 4, 2), loaded.tokenizer)
    arguments = [
        "compress",
        "experts",
        str(tmp_path / "moe"),
        "--text",
        str(folder / "text.txt"),
        "--rows",
        "4",
        "--length",
        "64",
    ]
    assert main(arguments) == 0
    assert "peak load" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 4
    assert (
        main(
            [
                "compress",
                "experts",
                str(folder / "model"),
                "--text",
                str(folder / "text.txt"),
                "--rows",
                "4",
                "--length",
                "64",
            ]
        )
        == 2
    )
