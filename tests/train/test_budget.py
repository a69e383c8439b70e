from types import SimpleNamespace

import pytest
from train_toys import Recorder, ToySource, everything, make

from dacheng.errors import UsageError
from dacheng.formats.json_files import read_json
from dacheng.ledger import Ledger, Prices
from dacheng.machine import Machine
from dacheng.train import Budget
from dacheng.train.budget import Speed, assumed_speed, resolve

SPEED = Speed(1000.0, "measured")
PRICES = Prices(power_per_kwh=0.5, watts=100.0, hardware_per_hour=0.15, labour_per_hour=1000.0, assumed=())


def machine(gflops: float) -> Machine:
    return Machine(
        cpu_model="x", capabilities=[], cores=1, threads=1, memory_bytes=1, matmul_gflops={"float32": gflops},
        measured_at="", torch_version="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (Budget(tokens=10_000), 20),
        (Budget(flops=3e9), 10),  # 3e9 / 6e5 a token = 5,000 tokens
        (Budget(minutes=2), 240),  # 120,000 tokens
        (Budget(money=1.0), 5 * 3600 * 2),  # 0.05 of power and 0.15 of hardware an hour: 5 hours
        (Budget(minutes=2, tokens=10_000), 20),  # the smaller decides
        (Budget(tokens=3), 1),  # never nothing
    ],
)
def test_a_budget_becomes_steps(budget, steps):
    found = resolve(budget, tokens_per_step=500, flops_per_token=6e5, speed=SPEED, prices=PRICES)
    assert found.steps == steps


def test_the_basis_says_how_and_how_sure():
    budget = Budget(minutes=2, money=1.0, flops=3e9)
    found = resolve(budget, 700, tokens_per_step=500, flops_per_token=6e5, speed=SPEED, prices=PRICES)
    assert found.steps == 10 and found.basis[0].startswith("flops: 3e+09 FLOPs / 6e+05 a token = 5,000 tokens")
    assert "2 min x 1,000 tokens/s (measured) = 120,000 tokens / 500 a step = 240 steps" in found.basis[1]
    assert "steps: 700" in found.basis[2]
    guessed = resolve(Budget(money=1.0), tokens_per_step=500, speed=Speed(1000.0, "assumed"), prices=Prices())
    assert "(prices assumed)" in guessed.basis[0] and "(assumed)" in guessed.basis[0]


def test_an_assumed_speed():
    assert assumed_speed(50.0, 0.4, 1e6).tokens_per_s == pytest.approx(20_000)


@pytest.mark.parametrize(
    ("budget", "steps", "field", "problem"),
    [
        (Budget(), None, "train.steps", "how long"),
        (Budget(), 0, "train.steps", "at least 1"),
        (Budget(flops=1e9), None, "train.budget.flops", "what a token costs"),
        (Budget(minutes=1), None, "train.budget.minutes", "speed"),
    ],
)
def test_what_cannot_be_resolved_is_named(budget, steps, field, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        resolve(budget, steps, tokens_per_step=500)
    assert caught.value.field == field


def test_money_without_prices_or_for_nothing_is_refused():
    with pytest.raises(UsageError, match="no prices"):
        resolve(Budget(money=1.0), tokens_per_step=500, speed=SPEED)
    free = Prices(power_per_kwh=0.0, hardware_per_hour=0.0)
    with pytest.raises(UsageError, match="never end"):
        resolve(Budget(money=1.0), tokens_per_step=500, speed=SPEED, prices=free)
    with pytest.raises(UsageError, match="how many tokens"):
        resolve(Budget(tokens=5), tokens_per_step=0)


@pytest.mark.parametrize("values", [{"minutes": 0.0}, {"tokens": -1.0}, {"money": float("nan")}, {"assumed_mfu": 1.5}])
def test_nonsense_is_refused_by_name(values):
    with pytest.raises(UsageError) as caught:
        Budget(**values)
    assert caught.value.field in values


def test_a_run_of_tokens(tmp_path):
    result = make(tmp_path, steps=None, budget=Budget(tokens=500)).fit()  # 96 a step
    assert result.steps == 5 and result.tokens == 480
    assert result.budget == ["tokens: 500 = 500 tokens / 96 a step = 5 steps"]


def test_minutes_by_an_assumed_share_of_the_peak(tmp_path):
    trainer = make(tmp_path, steps=None, budget=Budget(minutes=0.01, assumed_mfu=0.1), machine=machine(0.05))
    cost = trainer.model.flops(12)
    result = trainer.fit()
    assert result.steps == int(0.01 * 60 * 0.05e9 * 0.1 / cost / 96)
    assert "(assumed)" in result.budget[0]


def test_money_takes_the_prices_of_the_ledger(tmp_path):
    budget = Budget(money=1e-6, assumed_mfu=0.1)
    ledger = Ledger(None, PRICES)
    result = make(tmp_path, steps=None, budget=budget, machine=machine(0.05), ledger=ledger).fit()
    assert "0.2 USD an hour" in result.budget[0] and "prices assumed" not in result.budget[0]


class _Stop(Exception):
    pass


def _crash(_trainer):
    raise _Stop


def test_a_measured_budget_is_settled_once(tmp_path, monkeypatch):
    """The measurement leaves no trace in the training, and neither a crash nor a resume measures again."""
    settings = {"steps": None, "budget": Budget(minutes=0.002)}
    with pytest.raises(_Stop):
        make(tmp_path, [Recorder(at={1: _crash})], **settings).fit()
    steps = read_json(tmp_path / "budget.json")["resolved"]["steps"]
    monkeypatch.setattr("dacheng.train.work.measure_speed", lambda trainer: pytest.fail("measured again"))
    before_a_checkpoint = make(tmp_path, [seen := Recorder()], **settings)
    result = before_a_checkpoint.fit()
    assert result.steps == steps and "(measured)" in result.budget[0]
    (tmp_path / "budget.json").unlink()  # the checkpoint knows it too
    assert make(tmp_path, **settings).fit().budget == result.budget
    plain = Recorder()
    make(tmp_path / "plain", [plain], steps=steps).fit()
    assert seen.losses == plain.losses


def test_measuring_leaves_no_trace(tmp_path):
    from dacheng.train.work import measure_speed

    source = ToySource()
    trainer = make(tmp_path, [Recorder(at={3: lambda t: speeds.append(check(t))})], source)
    speeds = []

    def check(running):
        before, state = everything(running), running.state.to_dict()
        speed = measure_speed(running)
        after = everything(running)
        assert running.state.to_dict() == state and all((before[name] == after[name]).all() for name in before)
        return speed

    trainer.fit()
    assert speeds[0].kind == "measured" and speeds[0].tokens_per_s > 0
    quiet = make(tmp_path / "quiet")
    quiet.fit()
    assert quiet.state.loss == trainer.state.loss


def test_a_model_without_a_formula_still_trains(tmp_path):
    trainer = make(tmp_path, steps=2)
    trainer.model.flops = None
    assert trainer.fit().flops == 0.0
    strange = SimpleNamespace(fingerprint="", tokens_per_step=0)
    with pytest.raises(UsageError, match="how many tokens"):
        make(tmp_path / "b", source=strange, steps=None, budget=Budget(tokens=5)).fit()
