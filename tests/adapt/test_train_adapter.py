"""train_adapter: what it leaves, what it costs, and that a resume ends at the same bytes."""

from __future__ import annotations

import json

import adapt_toys as toys
import pytest
import torch

from dacheng.adapt import AdaptTrainConfig, compare_repeats, train_adapter
from dacheng.adapt.tail import read_log
from dacheng.engine import Engine
from dacheng.errors import DachengError, UsageError
from dacheng.formats.peft import read_adapter
from dacheng.nn.lora import LoRA
from dacheng.protocols import SamplingParams
from dacheng.records import Record
from dacheng.train.callbacks import Callback


@pytest.fixture(scope="module")
def renderer():
    return toys.renderer()


def train(out, renderer, callbacks=(), examples=None, **changes):
    model = toys.model(renderer.tokenizer.vocab_size)
    made = train_adapter(
        model, examples or toys.examples(), out, toys.settings(**changes), callbacks, renderer=renderer
    )
    return made, model


class Crash(Exception):
    pass


class CrashAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer, report):
        if report.step == self.step:
            raise Crash


def test_it_learns_and_leaves_an_adapter_that_answers(renderer, tmp_path):
    made, _ = train(tmp_path, renderer, steps=140, rank=8, alpha=32.0, lr=6e-3, held_out_rows=2, snapshot_every=70)
    assert made.loss_before > 2 and made.loss_after < 0.1
    assert made.path == tmp_path / "adapter" and made.examples == 12 and made.steps == 140
    assert made.trained < made.total and made.tokens == 140 * 2 * toys.ROW
    fresh = toys.model(renderer.tokenizer.vocab_size).eval()
    from dacheng.adapt import attach, rows_of

    rows_of(fresh, make=True).default = attach(fresh, read_adapter(made.path, fresh))
    end = renderer.tokenizer.special_tokens["<|im_end|>"]
    prompts = [renderer.render(chat[:1], add_generation_prompt=True).token_ids for chat in toys.chats()]
    params = SamplingParams(max_tokens=12, temperature=0, stop_token_ids=(end,))
    answers = Engine(fresh, renderer.tokenizer).generate(prompts, params)
    assert [a.text for a in answers] == [chat[1]["content"] for chat in toys.chats()]
    assert json.loads((tmp_path / "training/result.json").read_text())["steps"] == 140
    snapshot = read_adapter(tmp_path / "training/snapshot", fresh)
    assert snapshot.parts.keys() == read_adapter(made.path, fresh).parts.keys()


def test_the_log_has_each_step_exactly(renderer, tmp_path):
    seen = []

    class Seen(Callback):
        def on_step_end(self, trainer, report):
            seen.append(report.loss)

    train(tmp_path, renderer, [Seen()], steps=5)
    start, *steps = read_log(tmp_path / "training/log.jsonl")
    assert (start["start"], start["from_step"], start["steps"]) == (0, 0, 5)
    assert [line["loss"] for line in steps] == seen  # to the bit
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    for line in steps:
        assert line["tokens"] == 2 * toys.ROW and 0 < line["targets"] < line["tokens"]
        assert line["seconds"] > 0 and line["joules"] > 0 and line["joules_kind"] in ("measured", "estimated")


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.1, "layers": 1}, {"use_dora": True}])
def test_a_crash_and_a_resume_end_at_the_same_bytes(renderer, tmp_path, changes):
    whole, _ = train(tmp_path / "a", renderer, save_every=4, **changes)
    with pytest.raises(Crash):
        train(tmp_path / "b", renderer, [CrashAt(7)], save_every=4, **changes)
    again, _ = train(tmp_path / "b", renderer, save_every=4, **changes)
    assert again.resumed_from == 4
    one, two = ((made.path / "adapter_model.safetensors").read_bytes() for made in (whole, again))
    assert one == two
    assert (whole.loss_before, whole.loss_after) == (again.loss_before, again.loss_after)
    repeats = compare_repeats(tmp_path / "b/training/log.jsonl")
    assert repeats.compared == 3 and repeats.bit_identical
    losses = {line["step"]: line["loss"] for line in read_log(tmp_path / "b/training/log.jsonl") if "step" in line}
    plain = {line["step"]: line["loss"] for line in read_log(tmp_path / "a/training/log.jsonl") if "step" in line}
    assert losses == plain


def test_a_difference_would_be_seen(renderer, tmp_path):
    train(tmp_path, renderer, steps=3)
    log = tmp_path / "training/log.jsonl"
    line = read_log(log)[-1]
    with open(log, "a") as file:
        file.write(json.dumps({**line, "loss": line["loss"] * (1 + 1e-15)}) + "\n" + '{"step": 3, "lo')
    assert compare_repeats(log).differing == (3,)


def test_only_the_top_layers(renderer, tmp_path):
    """The block below has no adapter, and its activations are not kept: they need no gradient."""
    asked = []

    class Looks(Callback):
        def on_start(self, trainer):
            for i, block in enumerate(trainer.model.blocks):
                block.register_forward_hook(
                    lambda _m, _i, y, i=i: asked.append((i, y.requires_grad)) if torch.is_grad_enabled() else None
                )

    made, model = train(tmp_path, renderer, [Looks()], layers=1, steps=2)
    assert all(name.startswith("blocks.1.") for name, m in model.named_modules() if isinstance(m, LoRA))
    assert asked == [(0, False), (1, True)] * 2 * 2  # two steps of two rows
    assert set(read_adapter(made.path, toys.model(renderer.tokenizer.vocab_size)).parts) == {
        f"blocks.1.{name}" for name in ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate",
                                        "mlp.up", "mlp.down")
    }  # fmt: skip


def test_seconds_become_steps_once(renderer, tmp_path):
    made, _ = train(tmp_path, renderer, seconds=0.5, save_every=1000)
    assert made.steps >= 1 and "measured" in made.budget[0]
    again, _ = train(tmp_path, renderer, seconds=0.5, save_every=1000)
    assert again.steps == made.steps and again.resumed_from == made.steps


def test_epochs_are_steps_over_the_rows(renderer, tmp_path):
    made, _ = train(tmp_path, renderer, epochs=2.0)
    starts = read_log(tmp_path / "training/log.jsonl")[0]
    assert made.steps == starts["steps"] >= 2


def test_what_cannot_be(renderer, tmp_path):
    for changes, field in (
        ({}, "steps"),
        ({"steps": 1, "batch_tokens": 100, "row_tokens": 64}, "batch_tokens"),
        ({"steps": 1, "layers": 0}, "layers"),
        ({"seconds": 0.0}, "seconds"),
        ({"steps": 1, "rank": 0}, "rank"),
    ):
        with pytest.raises(UsageError) as caught:
            AdaptTrainConfig(**changes)
        assert caught.value.field == field
    with pytest.raises(DachengError) as caught:
        train(tmp_path, renderer, examples=[Record("1", text="no chat")])
    assert caught.value.field == "data"
    with pytest.raises(UsageError) as caught:
        train_adapter(toys.model(300), toys.examples(), tmp_path, toys.settings())
    assert caught.value.field == "renderer"
    with pytest.raises(UsageError) as caught:
        train_adapter(toys.directory(tmp_path), toys.examples(), tmp_path, toys.settings(base_memory="small"))
    assert caught.value.field == "base_memory"
    assert torch.get_num_threads() >= 1


def test_around_a_files_packed_weights(tmp_path):
    """The same adapter either way, up to rounding; with "small" the floats of the blocks are never all there."""
    from dacheng.cli.export import export
    from dacheng.nn.packed import Packed

    assert export(str(toys.directory(tmp_path)), gguf="q8_0", out=tmp_path / "base.gguf") == 0
    found = {}

    class Looks(Callback):
        def on_start(self, trainer):
            found["packed"] = sum(isinstance(m, Packed) for m in trainer.model.modules())

    losses = []
    for memory, packed in (("fast", 0), ("small", 14)):
        settings = toys.settings(steps=3, base_memory=memory)
        made = train_adapter(tmp_path / "base.gguf", toys.examples(), tmp_path / memory, settings, [Looks()])
        assert found["packed"] == packed
        losses.append([line["loss"] for line in read_log(tmp_path / memory / "training/log.jsonl") if "step" in line])
        assert made.loss_after < made.loss_before
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # Adam makes much of gradients that are nearly zero
