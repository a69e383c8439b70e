"""train_preferences and train_reward: they learn, cache their reference, and resume to the same bytes."""

from __future__ import annotations

import json

import preference_toys as toys
import pytest
import torch

from dacheng.align.preferences import PreferTrainConfig, RewardModel, RewardTrainConfig, train_preferences, train_reward
from dacheng.align.preferences.reference import ReferenceCache, model_digest, row_logps
from dacheng.data.preferences import pair_rows
from dacheng.errors import DachengError, UsageError
from dacheng.records import Drops
from dacheng.train.callbacks import Callback

LOSSES = ("dpo", "ipo", "hinge", "robust", "conservative", "kto", "orpo", "simpo", "cpo")
TRAIN, HELD_OUT = toys.comparisons()[:9], toys.comparisons()[9:]


@pytest.fixture(scope="module")
def renderer():
    return toys.renderer()


def config(kind=PreferTrainConfig, **changes):
    defaults = {"rank": 4, "alpha": 8.0, "layers": None, "lr": 3e-3, "steps": 12, "batch_pairs": 4, "threads": 1,
                "max_tokens": toys.MAX}  # fmt: skip
    return kind(**{**defaults, **changes})


def train(out, renderer, callbacks=(), data=TRAIN, held_out=HELD_OUT, **changes):
    model = toys.model(renderer.tokenizer.vocab_size)
    made = train_preferences(model, data, out, config(**changes), callbacks, renderer=renderer, held_out=held_out)
    return made, model


class Crash(Exception):
    pass


class CrashAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer, report):
        if report.step == self.step:
            raise Crash


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_what_is_preferred(renderer, tmp_path, loss):
    smoothing = {"label_smoothing": 0.1} if loss in ("robust", "conservative") else {}
    made, _ = train(tmp_path, renderer, loss=loss, steps=20, **smoothing)
    assert made.before["rewards/accuracies"] == 0.5 and made.before["rewards/margins"] == 0
    assert made.after["rewards/accuracies"] == 1.0 and made.accuracy[0] == 1.0
    assert made.after["logps/chosen"] - made.after["logps/rejected"] > 5 + (
        made.before["logps/chosen"] - made.before["logps/rejected"]
    )
    assert (made.measured_on, made.measured_pairs, made.pairs) == ("held out", 3, 18 if loss == "kto" else 9)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_the_first_loss_of_dpo_is_ln_2_and_metrics_have_their_names(renderer, tmp_path):
    train(tmp_path, renderer, steps=2, lr=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "training/train.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line.get("step") == 1)
    text = json.dumps(first)
    assert first["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"):
        assert name in text


def test_the_weights_themselves(renderer, tmp_path):
    made, model = train(tmp_path, renderer, rank=0, lr=3e-4, steps=15)
    assert made.after["rewards/accuracies"] == 1.0 and made.trained == made.total
    from dacheng.formats.model_directory import load_model

    again = load_model(made.path).model
    assert model_digest(again) == model_digest(model)


@pytest.mark.parametrize("changes", [{}, {"rank": 0, "lr": 3e-4}, {"loss": "kto"}])
def test_a_crash_and_a_resume_end_at_the_same_bytes(renderer, tmp_path, changes):
    whole, one = train(tmp_path / "a", renderer, save_every=3, steps=8, **changes)
    with pytest.raises(Crash):
        train(tmp_path / "b", renderer, [CrashAt(5)], save_every=3, steps=8, **changes)
    again, two = train(tmp_path / "b", renderer, save_every=3, steps=8, **changes)
    assert again.resumed_from == 3 and model_digest(one) == model_digest(two)
    assert (whole.before, whole.after) == (again.before, again.after)


def test_the_reference_is_computed_once(renderer, tmp_path, monkeypatch):
    monkeypatch.setenv("DACHENG_CACHE", str(tmp_path / "cache"))
    first, _ = train(tmp_path / "a", renderer, steps=1)
    second, _ = train(tmp_path / "b", renderer, steps=1, loss="ipo", seed=7)
    assert first.references == {"computed": 24, "kept": 0} and second.references == {"computed": 0, "kept": 24}
    model = toys.model(renderer.tokenizer.vocab_size)
    pairs = pair_rows(TRAIN, renderer, toys.MAX, Drops())
    cache = ReferenceCache(model_digest(model))
    direct = torch.stack([row_logps(model, list(pair[:2])) for pair in pairs])
    torch.testing.assert_close(cache.of(pairs), direct, atol=1e-4, rtol=1e-5)
    cache.path.write_text('{"sums": 3')  # damaged: made again, not believed
    third, _ = train(tmp_path / "c", renderer, steps=1)
    assert third.references == {"computed": 24, "kept": 0}
    model.embed.weight.data[0, 0] += 1e-3  # another model has other figures
    assert ReferenceCache(model_digest(model)).sums == {}


def test_a_reference_that_was_interrupted_has_the_same_bits(renderer, tmp_path, monkeypatch):
    from dacheng.align.preferences import reference

    monkeypatch.setattr(reference, "BATCH_TOKENS", 80)
    model = toys.model(renderer.tokenizer.vocab_size)
    rows = [row for pair in pair_rows(toys.comparisons(), renderer, toys.MAX, Drops()) for row in pair[:2]]
    whole, broken = (ReferenceCache("d" * 64, tmp_path / name) for name in "ab")
    whole.fill(model, rows)

    def stop(done, total):
        assert total == 24
        if done > 6:
            raise Crash

    with pytest.raises(Crash):
        broken.fill(model, rows, progress=stop)
    again = ReferenceCache("d" * 64, tmp_path / "b")
    assert 6 < len(again.sums) < 24
    again.fill(model, rows)
    assert again.sums == whole.sums and again.computed + broken.computed == 24
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(DachengError, match="no finite"):
        ReferenceCache("e" * 64, tmp_path / "c").fill(model, rows)


def test_single_marks_are_enough_for_kto(renderer, tmp_path):
    made, _ = train(tmp_path, renderer, data=toys.marked()[:8], held_out=toys.marked()[8:], loss="kto", steps=20)
    assert made.after["rewards/accuracies"] == 1.0 and made.measured_pairs == 2
    with pytest.raises(DachengError, match="no preference is left"):
        train(tmp_path / "dpo", renderer, data=toys.marked()[:8], held_out=toys.marked()[8:])


def test_what_cannot_be_is_named(renderer, tmp_path):
    with pytest.raises(UsageError) as caught:
        config(loss="kto", micro_batches=2)
    assert caught.value.field == "micro_batches"
    with pytest.raises(UsageError) as caught:
        config(steps=None)
    assert caught.value.field == "steps"
    with pytest.raises(UsageError) as caught:
        config(loss="dpo", label_smoothing=0.2)
    assert caught.value.field == "label_smoothing"
    made, _ = train(tmp_path, renderer, data=toys.comparisons(), steps=1)
    assert made.drops["dropped"] == {"prompt_is_held_out": 3} and made.pairs == 9
    with pytest.raises(DachengError, match="no preference is left"):
        train(tmp_path / "short", renderer, max_tokens=5)


def test_a_reward_model_ranks_and_is_read_again(renderer, tmp_path):
    model = toys.model(renderer.tokenizer.vocab_size)
    made = train_reward(
        model, TRAIN, tmp_path, config(RewardTrainConfig, steps=20), renderer=renderer, held_out=HELD_OUT
    )
    assert made.accuracy[0] == 1.0 and made.margin > 1 and made.length_baseline["pairs"] == 3
    assert (tmp_path / "reward/reward.json").is_file()


@pytest.mark.parametrize("rank", [4, 0])
def test_a_reward_model_from_a_directory(renderer, tmp_path, rank):
    from dacheng.formats.model_directory import save_model
    from dacheng.text.chat.builtin import TEMPLATES

    base = save_model(tmp_path / "base", toys.model(renderer.tokenizer.vocab_size), renderer.tokenizer)
    (base / "chat_template.jinja").write_text(TEMPLATES["chatml"])
    settings = config(RewardTrainConfig, steps=20, rank=rank, lr=3e-3 if rank else 5e-4)
    made = train_reward(base, TRAIN, tmp_path / "out", settings, held_out=HELD_OUT)
    judge = RewardModel.load(made.path)
    said = [(*p.said.prompt, *reply) for p in HELD_OUT for reply in (p.said.chosen, p.said.rejected)]
    scores = torch.tensor(judge.scores([list(one) for one in said])).view(-1, 2)
    assert bool((scores[:, 0] > scores[:, 1]).all()) and scores.abs().max() < 10
    gap = (scores[:, 0] - scores[:, 1]).mean() * judge.std
    assert float(gap) == pytest.approx(made.margin, rel=1e-3)
    (made.path / "reward.json").write_text("{}")
    with pytest.raises(DachengError, match="damaged"):
        RewardModel.load(made.path)
    with pytest.raises(DachengError, match="no reward model"):
        RewardModel.load(base)


def test_four_by_one_is_one_by_four(renderer, tmp_path):
    one, whole = train(tmp_path / "a", renderer, steps=3, rank=0, lr=1e-3)
    two, parts = train(tmp_path / "b", renderer, steps=3, rank=0, lr=1e-3, micro_batches=4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-4, rtol=1e-4)
    assert two.after["logps/chosen"] == pytest.approx(one.after["logps/chosen"], rel=1e-3)


def test_padding_with_a_token_that_means_something_changes_nothing(renderer):
    """Pad is end of text in many tokenizers: here lengths say where a row ends, never an id."""
    pairs = pair_rows(toys.comparisons(), renderer, toys.MAX, Drops())
    rows = sorted((row for pair in pairs for row in pair[:2]), key=lambda row: len(row.ids))
    mixed = [rows[0], rows[-1]]
    end = renderer.tokenizer.special_tokens["<|im_end|>"]
    model = toys.model(renderer.tokenizer.vocab_size)
    by_zero, by_end = (row_logps(model, mixed, pad) for pad in (0, end))
    assert torch.equal(by_zero, by_end)
    alone = torch.cat([row_logps(model, [row]) for row in mixed])
    torch.testing.assert_close(by_zero, alone, atol=1e-4, rtol=1e-5)


def test_a_reference_with_other_tokens_is_refused(renderer, tmp_path):
    from dacheng.formats.model_directory import save_model
    from dacheng.text.chat.builtin import TEMPLATES

    def saved(name, vocab_size, seed):
        path = save_model(tmp_path / name, toys.model(vocab_size, seed), renderer.tokenizer)
        (path / "chat_template.jinja").write_text(TEMPLATES["chatml"])
        return path

    size = renderer.tokenizer.vocab_size
    settings = config(steps=1)
    with pytest.raises(DachengError, match="vocabulary"):
        train_preferences(
            saved("base", size, 0), TRAIN, tmp_path / "a", settings, reference=saved("larger", size + 8, 0)
        )
    made = train_preferences(tmp_path / "base", TRAIN, tmp_path / "b", settings, reference=saved("other", size, 3))
    assert made.before["rewards/margins"] != 0  # the policy is not its own reference


def test_another_adapter_off_is_the_reference_to_the_bit(renderer, tmp_path):
    """What is cached and what the adapter's base says later are one figure."""
    from dacheng.adapt import disabled
    from dacheng.align.preferences.measure import logps_of

    cached = ReferenceCache(model_digest(toys.model(renderer.tokenizer.vocab_size)), tmp_path / "cache")
    _, model = train(tmp_path / "run", renderer, steps=4)
    pairs = pair_rows(HELD_OUT, renderer, toys.MAX, Drops())
    cached.fill(toys.model(renderer.tokenizer.vocab_size), [row for pair in pairs for row in pair[:2]])
    with disabled(model):
        assert torch.equal(logps_of(model, pairs), cached.of(pairs))
    assert not torch.equal(logps_of(model, pairs), cached.of(pairs))
