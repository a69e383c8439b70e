"""Training the weights themselves, noise on the embeddings, and the sft recipe with either method."""

from __future__ import annotations

import json
from pathlib import Path

import adapt_toys as toys
import pytest
import torch

from dacheng.adapt import ChatTrainConfig, train_full
from dacheng.adapt.full import choose_top
from dacheng.cli.train import train
from dacheng.data.batches import TokenBatch
from dacheng.errors import DachengError, UsageError
from dacheng.formats.model_directory import load_model
from dacheng.life.expand import load_recipe
from dacheng.objectives.base import StepContext
from dacheng.objectives.neftune import Neftune, text_lengths
from dacheng.objectives.next_token import NextToken
from dacheng.text.chat.builtin import TEMPLATES
from dacheng.train.callbacks import Callback

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "align" / "sft.yaml"


@pytest.fixture(scope="module")
def renderer():
    return toys.renderer()


def settings(**changes):
    row = {"row_tokens": toys.ROW, "batch_tokens": 2 * toys.ROW, "threads": 1, "lr": 2e-3, "steps": 12}
    return ChatTrainConfig(**row | changes)


def full(out, renderer, callbacks=(), **changes):
    model = toys.model(renderer.tokenizer.vocab_size)
    return train_full(model, toys.examples(), out, settings(**changes), callbacks, renderer=renderer), model


class Crash(Exception):
    pass


class CrashAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer, report):
        if report.step == self.step:
            raise Crash


def test_the_weights_learn_and_load(renderer, tmp_path):
    made, model = full(tmp_path, renderer, steps=100)
    assert made.loss_before > 2 and made.loss_after < 0.2 and made.trained == made.total
    again = load_model(made.path)
    assert made.path == tmp_path / "model" and again.tokenizer is not None
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)


@pytest.mark.parametrize("changes", [{}, {"neftune": 5.0, "layers": 1}])
def test_a_crash_and_a_resume_end_at_the_same_bytes(renderer, tmp_path, changes):
    whole, _ = full(tmp_path / "a", renderer, save_every=4, **changes)
    with pytest.raises(Crash):
        full(tmp_path / "b", renderer, [CrashAt(7)], save_every=4, **changes)
    again, _ = full(tmp_path / "b", renderer, save_every=4, **changes)
    assert again.resumed_from == 4
    one, two = ((made.path / "model.safetensors").read_bytes() for made in (whole, again))
    assert one == two


def test_only_the_top_blocks_move(renderer, tmp_path):
    before = toys.model(renderer.tokenizer.vocab_size).state_dict()
    made, model = full(tmp_path, renderer, layers=1, steps=2)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert made.trained < made.total and moved
    assert all(name.startswith(("blocks.1.", "norm.", "lm_head.")) for name in moved)
    with pytest.raises(UsageError) as caught:
        choose_top(model, 3)
    assert caught.value.field == "layers"


def test_settings_that_make_no_run():
    for changes, field in (({"neftune": -1.0}, "neftune"), ({"learn": "some"}, "learn"), ({"layers": 0}, "layers")):
        with pytest.raises(UsageError) as caught:
            settings(**changes)
        assert caught.value.field == field
    with pytest.raises(UsageError):
        Neftune(NextToken(), float("nan"))


# --- noise ------------------------------------------------------------------------------------------------------------
def batch(document_ids=None):
    tokens = torch.arange(12).view(2, 6)
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    return TokenBatch(tokens, torch.roll(tokens, -1, 1), positions, document_ids)


def test_a_texts_length_is_its_own():
    ids = torch.tensor([[0, 0, 0, 1, 1, -1], [0] * 6])
    assert text_lengths(batch(ids)).tolist() == [[3, 3, 3, 2, 2, 3], [6] * 6]
    padded = batch()
    assert text_lengths(padded).tolist() == [[3] * 6, [6] * 6]
    short = TokenBatch(*[torch.tensor([[0, 1, 0, 1, 2, 3]])] * 3)  # two tokens, then longer padding
    assert text_lengths(short).tolist() == [[2] * 6]
    short.document_ids = torch.tensor([[0, 0, -1, -1, -1, -1]])
    assert text_lengths(short).tolist() == [[2] * 6]


def test_the_noise_is_alpha_over_the_root_of_length_times_width(renderer):
    model = toys.model(300)
    seen = []
    model.embed.register_forward_hook(lambda _m, _i, y: seen.append(y.detach().clone()))
    rows = batch(torch.tensor([[0, 0, 0, 1, 1, -1], [0] * 6]))

    def run(alpha, training=True, seed=1):
        generator = torch.Generator().manual_seed(seed)
        terms, _ = Neftune(NextToken(), alpha)(model, rows, StepContext(training=training, generator=generator))
        return float(terms["next_token"].sum.detach())

    plain = run(0.0)
    assert run(5.0, training=False) == plain and len(model.embed._forward_hooks) == 1
    noisy = run(5.0)
    assert noisy != plain and run(5.0) == noisy and run(5.0, seed=2) != noisy
    noise = []
    model.embed.register_forward_hook(lambda _m, _i, y: noise.append(y.detach() - seen[0]))
    # our hook comes before that of Neftune: of the input of the blocks, read through the first norm's input
    model.blocks[0].attention_norm.register_forward_pre_hook(lambda _m, x: noise.append(x[0].detach() - seen[0]))
    run(5.0)
    drawn = noise[-1]
    bounds = 5.0 / (torch.tensor([[3, 3, 3, 2, 2, 3], [6] * 6]) * 64.0).sqrt()
    share = drawn.abs() / bounds.unsqueeze(-1)
    assert share.max() <= 1 + 1e-4 and share.amax(-1).min() > 0.8  # of 64 draws, the largest is near the bound
    assert abs(float((drawn / bounds.unsqueeze(-1)).mean())) < 0.1


def test_noise_is_the_peers(goldens):
    """transformers' neftune_post_forward_hook on the same seed."""
    found = json.loads((goldens / "neftune.json").read_text())
    for case in found["cases"]:
        B, T, D = case["shape"]
        model = toys.model(300)
        assert model.traits.width == D
        tokens = torch.tensor(case["tokens"])
        positions = torch.arange(T).expand(B, T)
        got = []
        model.blocks[0].attention_norm.register_forward_pre_hook(lambda _m, x, got=got: got.append(x[0].detach()))
        with torch.no_grad():
            model.embed.weight.zero_()
        context = StepContext(generator=torch.Generator().manual_seed(case["seed"]))
        Neftune(NextToken(), case["alpha"])(model, TokenBatch(tokens, tokens, positions), context)
        assert torch.allclose(got[0], torch.tensor(case["noise"]), atol=1e-7)


@pytest.mark.peer
def test_the_golden_is_made_again(goldens, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(goldens))
    from make_neftune import cases

    for made, kept in zip(cases(), json.loads((goldens / "neftune.json").read_text())["cases"], strict=True):
        assert {**made, "noise": None} == {**kept, "noise": None}
        assert torch.allclose(torch.tensor(made["noise"]), torch.tensor(kept["noise"]), atol=1e-7)


# --- the recipe -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_recipe_trains_either_way(tmp_path, monkeypatch, capsys, method):
    monkeypatch.chdir(tmp_path)
    base = toys.directory(tmp_path)
    alpaca = tmp_path / "alpaca.json"
    chats = [{"instruction": c[0]["content"], "input": "", "output": c[1]["content"]} for c in toys.chats()]
    alpaca.write_text(json.dumps([*chats, {"instruction": "?", "output": ""}]))
    own = ["sft.rank=4"] if method == "lora" else ["sft.rank=null", "sft.lr=2e-3"]
    words = [f"sft.model={base}", f"sft.data=[{alpaca}]", "sft.held_out=[]", "sft.row_tokens=64",
             "sft.batch_tokens=64", "sft.seconds=null", "sft.epochs=6", "sft.neftune=5", "sft.template=qwen",
             f"sft.method={method}", *own]  # fmt: skip
    assert train(RECIPE, *words, out=tmp_path / "run", json=True) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    made = stage["artifact"]
    assert (stage["do"], made["kind"]) == ("sft", "model")
    assert made["metrics"]["examples"] == 12 and made["metrics"]["loss_after"] < made["metrics"]["loss_before"]
    loaded = load_model(made["path"])
    assert loaded.provenance["parent"] is not None and loaded.tokenizer.chat_template == TEMPLATES["qwen"]
    assert (Path(made["path"]).parent / "adapter").is_dir() == (method == "lora")


def test_what_the_recipe_refuses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for changes, field in (
        ({}, "sft.data"),
        ({"data": ["x"], "steps": 1, "method": "full", "rank": 4}, "sft.rank"),
        ({"data": ["x"], "steps": 1, "layout": "csv"}, "sft.layout"),
        ({"data": ["x"]}, "sft.steps"),
    ):
        with pytest.raises(UsageError) as caught:
            load_recipe({"do": "sft", "sft": changes})
        assert caught.value.field == field
    base = toys.directory(tmp_path)
    for changes in ({"data": ["nowhere.json"], "model": str(base)}, {"data": ["examples.jsonl"], "model": "nowhere"}):
        with pytest.raises(DachengError, match="nowhere"):
            load_recipe({"do": "sft", "sft": {"steps": 1, **changes}}).keys  # noqa: B018
    with pytest.raises(DachengError) as caught:
        _run_without_model(tmp_path)
    assert caught.value.field == "model"


def _run_without_model(folder):
    (folder / "r.yaml").write_text("do: sft\nsft: {data: [examples.jsonl], steps: 1}\n")
    train(folder / "r.yaml", out=folder / "run")
