import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.errors import UsageError
from dacheng.ledger import Prices
from dacheng.machine import Machine
from dacheng.models.decoder import Decoder
from dacheng.plan.budget import LEAST_STEPS, Budget, plan_decoder
from dacheng.plan.ladder import ladder, rung


def machine(float32=100.0, bfloat16=1.0, memory=16 << 30):
    return Machine(
        cpu_model="made up",
        capabilities=[],
        cores=2,
        threads=2,
        memory_bytes=memory,
        matmul_gflops={"float32": float32, "bfloat16": bfloat16},
        measured_at="2025-01-01T00:00:00+00:00",
        torch_version="2.9.0",
    )


PRICES = Prices(power_per_kwh=0.3, watts=100.0, hardware_per_hour=0.12, currency="EUR", assumed=())


def test_minutes_become_a_model_that_takes_them():
    plan = plan_decoder(Budget(minutes=30), machine(), 4096, 256, prices=PRICES)
    assert plan.minutes == pytest.approx(30, rel=0.02)
    assert plan.minutes <= 30
    model = Decoder(plan.traits)
    assert plan.flops == pytest.approx(plan.tokens * model.flops(256, training=True))
    assert plan.minutes * 60 == pytest.approx(plan.flops / (100e9 * plan.mfu))
    assert plan.params == model.params()
    assert plan.tokens == plan.steps * plan.batch_tokens
    assert plan.batch_tokens == plan.batch_rows * plan.micro_batches * 256
    assert plan.steps >= LEAST_STEPS
    counted = plan.params["matrices"] + 4096 * plan.traits.width
    assert 10 < plan.tokens / counted < 40
    assert plan.joules == pytest.approx(plan.minutes * 60 * 100)
    assert plan.money == {
        "power": pytest.approx(plan.joules / 3.6e6 * 0.3),
        "hardware": pytest.approx(plan.minutes / 60 * 0.12),
    }


def test_a_hundredfold_budget_makes_both_model_and_data_about_tenfold():
    small, large = (plan_decoder(Budget(flops=flops), machine(), 4096, 256) for flops in (1e16, 1e18))
    growth = large.params["matrices"] / small.params["matrices"]
    assert 7 < growth < 16
    assert 6 < large.tokens / small.tokens < 16
    rule = (large.tokens / small.tokens) ** 0.383
    assert rule / 2 <= large.batch_tokens / small.batch_tokens <= rule * 2  # both are powers of two


@settings(max_examples=25, deadline=None)
@given(
    flops=st.floats(13, 17),
    vocab_size=st.sampled_from([256, 4096, 32768]),
    context_length=st.sampled_from([64, 256, 1024]),
    unique=st.none() | st.floats(6, 9),
)
def test_a_plan_keeps_to_its_budget_or_is_refused(flops, vocab_size, context_length, unique):
    unique_tokens = None if unique is None else 10**unique
    try:
        plan = plan_decoder(Budget(flops=10**flops), machine(), vocab_size, context_length, unique_tokens=unique_tokens)
    except UsageError as error:
        assert "fewer than one a parameter" in str(error)
        return
    assert plan.flops <= 10**flops * (1 + 1e-9)
    assert plan.memory.total <= 0.8 * machine().memory_bytes
    assert plan.traits.validate().max_positions == context_length
    if unique_tokens is not None:
        assert plan.tokens <= 4 * unique_tokens * (1 + 1e-9)
        assert plan.epochs == pytest.approx(plan.tokens / unique_tokens)


def test_the_smallest_limit_counts():
    both = plan_decoder(Budget(minutes=30, flops=1e13), machine(), 4096, 256)
    alone = plan_decoder(Budget(flops=1e13), machine(), 4096, 256)
    assert (both.tokens, both.traits) == (alone.tokens, alone.traits)


def test_money_pays_for_power_and_hardware():
    plan = plan_decoder(Budget(money=0.15), machine(), 4096, 256, prices=PRICES)
    assert plan.minutes == pytest.approx(60, rel=0.03)  # 0.03 of power and 0.12 of hardware an hour
    assert sum(plan.money.values()) <= 0.15
    with pytest.raises(UsageError, match="priced at 0"):
        plan_decoder(Budget(money=1), machine(), 4096, 256, prices=Prices(power_per_kwh=0, hardware_per_hour=0))


def test_tokens_alone_choose_the_model_for_them():
    plan = plan_decoder(Budget(tokens=2e8), machine(), 4096, 256)
    counted = plan.params["matrices"] + 4096 * plan.traits.width
    assert 2e8 / counted == pytest.approx(20, rel=0.35)
    assert plan.tokens == pytest.approx(2e8, rel=0.01)


def test_little_data_makes_a_larger_model_or_leaves_time_unused():
    free = plan_decoder(Budget(flops=1e17), machine(), 4096, 256)
    bounded = plan_decoder(Budget(flops=1e17), machine(), 4096, 256, unique_tokens=free.tokens / 8)
    assert bounded.params["matrices"] > free.params["matrices"]
    assert bounded.epochs == pytest.approx(4, rel=0.01)
    assert bounded.flops > 0.6 * 1e17
    scarce = plan_decoder(Budget(flops=1e17), machine(), 4096, 256, unique_tokens=1e7)
    assert scarce.epochs == pytest.approx(4, rel=0.01)
    assert scarce.flops < 0.2 * 1e17
    assert "stay unused" in "\n".join(scarce.formula)
    once = plan_decoder(Budget(flops=1e17), machine(), 4096, 256, unique_tokens=1e7, max_epochs=1)
    assert once.tokens <= 1e7
    with pytest.raises(UsageError, match="at most 4000000"):
        plan_decoder(Budget(tokens=1e8), machine(), 256, 256, unique_tokens=1e6)


def test_memory_bounds_the_model():
    free = plan_decoder(Budget(flops=1e18), machine(), 4096, 256)
    small = plan_decoder(Budget(flops=1e18), machine(memory=1 << 30), 4096, 256)
    assert small.params["total"] < free.params["total"]
    assert small.memory.total <= 0.8 * (1 << 30)
    assert "memory is the limit" in "\n".join(small.formula)
    with pytest.raises(UsageError, match="fits in memory"):
        plan_decoder(Budget(minutes=30), machine(memory=300 << 20), 4096, 256)


def test_a_budget_too_small_names_the_least_and_that_works():
    with pytest.raises(UsageError, match="fewer than one a parameter") as raised:
        plan_decoder(Budget(minutes=0.01), machine(), 4096, 256)
    least = float(raised.value.remedy.split(" FLOPs")[0].split("= ")[1])
    plan = plan_decoder(Budget(flops=least * 1.01), machine(), 4096, 256)
    assert plan.steps >= 1
    with pytest.raises(UsageError, match="budget is empty"):
        plan_decoder(Budget(), machine(), 4096, 256)


def test_speed_and_dtype_come_from_the_machine():
    slow = plan_decoder(Budget(flops=1e15), machine(float32=50.0), 4096, 256)
    fast = plan_decoder(Budget(flops=1e15), machine(float32=50.0, bfloat16=200.0), 4096, 256)
    assert (slow.dtype, fast.dtype) == ("float32", "bfloat16")
    assert fast.minutes < slow.minutes
    stated = plan_decoder(Budget(flops=1e15, assumed_mfu=0.25), machine(float32=50.0), 4096, 256)
    assert stated.minutes == pytest.approx(2 * slow.minutes)
    assert plan_decoder(Budget(flops=1e15), machine(bfloat16=500.0), 4096, 256, dtype="float32").dtype == "float32"


def test_every_figure_says_how_it_is_known():
    plan = plan_decoder(Budget(minutes=10), machine(), 4096, 256)
    assert set(plan.kinds.values()) == {"measured", "estimated", "assumed"}
    assert (plan.kinds["gflops"], plan.kinds["mfu"], plan.kinds["minutes"]) == ("measured", "assumed", "estimated")
    assert plan.kinds["money"] == "assumed"
    assert plan_decoder(Budget(minutes=10), machine(), 4096, 256, prices=PRICES).kinds["money"] == "estimated"
    text = "\n".join(plan.formula)
    for part in ("(measured)", "(assumed)", "(estimated)", "Hoffmann", "x 600 s", f"{plan.tokens:,} tokens"):
        assert part in text
    assert json.loads(json.dumps(plan.to_dict()))["traits"]["width"] == plan.traits.width
    assert plan.lr_scale == pytest.approx(math.sqrt(768 / plan.traits.width))


def test_traits_pass_through_and_a_given_shape_is_kept():
    wanted = {"activation": "relu2", "qk_norm": True, "norm_weight": False, "tied_head": False, "kv_heads": 2}
    plan = plan_decoder(Budget(minutes=30), machine(), 4096, 256, traits=wanted)
    for name in ("activation", "qk_norm", "norm_weight", "tied_head"):
        assert getattr(plan.traits, name) == wanted[name]
    assert plan.traits.heads % plan.traits.kv_heads == 0
    fixed = plan_decoder(Budget(minutes=30), machine(), 4096, 256, traits={"width": 96, "layers": 5, "heads": 3})
    assert (fixed.traits.width, fixed.traits.layers, fixed.traits.heads) == (96, 5, 3)
    for wrong in ({"layers": 3}, {"no_such": 1}, {"vocab_size": 7}, {"max_positions": 8}):
        with pytest.raises(UsageError):
            plan_decoder(Budget(minutes=30), machine(), 4096, 256, traits=wrong)


def test_the_ladder_climbs_steadily():
    rungs = [rung(shape, 256) for shape in ladder(1024, 256)[:24]]
    growth = [b.multiplied / a.multiplied for a, b in itertools.pairwise(rungs)]
    assert min(growth) > 1
    assert max(growth[2:]) < 2
    for r in rungs:
        assert r.traits.width % r.traits.heads == 0
        assert r.flops_per_token > 6 * r.multiplied
        assert 0 < r.vocabulary_share < 1
    assert rungs[-1].traits.head_size == 64


@pytest.mark.parametrize("options", [{"max_epochs": 0}, {"tokens_per_parameter": -1}, {"unique_tokens": 0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(UsageError):
        plan_decoder(Budget(minutes=30), machine(), 4096, 256, **options)
