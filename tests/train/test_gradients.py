import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_toys import CONTEXT, VOCAB, ToyModel, ToyObjective, ToySource

from dacheng.data.batches import TokenBatch
from dacheng.errors import DachengError, UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.objectives.base import StepContext, Term
from dacheng.objectives.next_token import NextToken
from dacheng.train import gradients
from dacheng.train.precision import LossScaler, Precision

FP32 = Precision("fp32", torch.device("cpu"))


def batch_of(rows: int, masked: torch.Tensor | None = None, seed: int = 0) -> TokenBatch:
    tokens = torch.randint(0, VOCAB, (rows, CONTEXT + 1), generator=torch.Generator().manual_seed(seed))
    targets = tokens[:, 1:].clone()
    if masked is not None:
        targets[masked] = -100
    return TokenBatch(tokens[:, :-1], targets, torch.arange(CONTEXT).expand(rows, CONTEXT))


def pieces(batch: TokenBatch, sizes: list[int]) -> list[TokenBatch]:
    parts = zip(*(x.split(sizes) for x in (batch.tokens, batch.targets, batch.positions)))
    return [TokenBatch(*part) for part in parts]


def run(model, objective, batches, precision=FP32):
    for p in model.parameters():
        p.grad = None
    totals = gradients.accumulate(model, objective, batches, StepContext(), precision, list(model.parameters()))
    return totals, {name: p.grad for name, p in model.named_parameters()}


def relative(a: dict, b: dict) -> float:
    scale = max(float(g.abs().max()) for g in a.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / scale


def tiny_decoder() -> Decoder:
    traits = DecoderTraits(vocab_size=VOCAB, width=16, layers=2, heads=2, max_positions=CONTEXT)
    return Decoder(traits).init_weights(torch.Generator().manual_seed(3))


@pytest.mark.parametrize("sizes", [[1] * 8, [4, 4], [5, 1, 2]])
@pytest.mark.parametrize("kind", ["toy", "decoder"])
def test_pieces_give_the_gradient_of_the_whole(kind, sizes):
    """8 micro-batches of 1 row ≡ 1 of 8, with masks that leave the pieces very unequal numbers of targets."""
    masked = torch.rand((8, CONTEXT), generator=torch.Generator().manual_seed(1)) < torch.linspace(0, 1, 8)[:, None]
    batch = batch_of(8, masked)
    model = ToyModel(dropout=0.0).eval() if kind == "toy" else tiny_decoder()
    objective = ToyObjective() if kind == "toy" else NextToken(chunk=16)
    whole, reference = run(model, objective, [batch])
    parts, grads = run(model, objective, pieces(batch, sizes))
    assert relative(reference, grads) < 2e-6
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.counts == whole.counts
    assert parts.metrics == pytest.approx(whole.metrics, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_mask_and_any_division_agree(data):
    rows = data.draw(st.integers(2, 5))
    cells = data.draw(st.lists(st.booleans(), min_size=rows * CONTEXT, max_size=rows * CONTEXT))
    cut = data.draw(st.integers(1, rows - 1))
    batch = batch_of(rows, torch.tensor(cells).view(rows, CONTEXT))
    model = ToyModel(dropout=0.0).eval()
    whole, reference = run(model, ToyObjective(), [batch])
    parts, grads = run(model, ToyObjective(), pieces(batch, [cut, rows - cut]))
    assert math.isfinite(whole.loss) and parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert relative(reference, grads) < 1e-5


def test_the_loss_is_the_mean_over_all_targets():
    batch = batch_of(4, torch.rand((4, CONTEXT)) < 0.5)
    model = ToyModel(dropout=0.0).eval()
    totals, _ = run(model, ToyObjective(penalty=0.0), pieces(batch, [1, 3]))
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten())
    assert totals.loss == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("objective", [ToyObjective(penalty=0.0), NextToken()], ids=["toy", "next_token"])
def test_an_all_masked_micro_batch_adds_exactly_zero(objective):
    model = ToyModel(dropout=0.0).eval() if isinstance(objective, ToyObjective) else tiny_decoder()
    real, masked = batch_of(3), batch_of(3, torch.ones(3, CONTEXT, dtype=torch.bool), seed=5)
    alone, reference = run(model, objective, [real])
    both, grads = run(model, objective, [masked, real, masked])
    assert both.loss == alone.loss
    assert all(torch.equal(reference[name], grads[name]) for name in reference)


def test_nothing_but_masked_batches_is_zero_and_not_nan():
    masked = batch_of(2, torch.ones(2, CONTEXT, dtype=torch.bool))
    totals, grads = run(tiny_decoder(), NextToken(), [masked, masked])
    assert totals.loss == 0.0 and totals.counts == {"next_token": 0.0}
    assert all(grad is None for grad in grads.values())


class NaNWhereEmpty(ToyObjective):
    """A careless objective: its mean over no targets is NaN. The trainer must not let that through."""

    def __call__(self, model, batch, ctx):
        terms, metrics = super().__call__(model, batch, ctx)
        if self.counts(batch)["next_token"] == 0:
            terms["next_token"] = Term(terms["next_token"].sum * float("nan"))
        return terms, metrics


def test_a_nan_of_a_term_without_elements_is_not_even_looked_at():
    model = ToyModel(dropout=0.0).eval()
    masked = batch_of(2, torch.ones(2, CONTEXT, dtype=torch.bool))
    totals, grads = run(model, NaNWhereEmpty(), [masked, batch_of(2)])
    assert math.isfinite(totals.loss) and all(torch.isfinite(g).all() for g in grads.values())


def test_weights_of_terms_scale_their_gradient():
    model, batch = ToyModel(dropout=0.0).eval(), batch_of(3)
    _, without = run(model, ToyObjective(penalty=0.0), [batch])
    _, once = run(model, ToyObjective(penalty=0.5), [batch])
    _, twice = run(model, ToyObjective(penalty=1.0), [batch])
    for name in without:
        torch.testing.assert_close(twice[name] - without[name], 2 * (once[name] - without[name]), atol=1e-6, rtol=1e-4)


def test_scaling_the_loss_leaves_the_gradient():
    model, batch = ToyModel(dropout=0.0).eval(), batch_of(3)
    _, reference = run(model, ToyObjective(), [batch])
    precision = Precision("fp32", torch.device("cpu"), LossScaler(scale=1024.0))
    totals, grads = run(model, ToyObjective(), [batch], precision)
    assert all(torch.equal(reference[name], grads[name]) for name in reference)  # a power of two is exact
    assert totals.loss < 10
    masked = batch_of(2, torch.ones(2, CONTEXT, dtype=torch.bool))
    assert run(tiny_decoder(), NextToken(), [masked], precision)[0].loss == 0.0


def test_a_coupled_objective_is_refused_in_pieces_only():
    model, batch = ToyModel(dropout=0.0).eval(), batch_of(4)
    coupled = ToyObjective(couples_batch=True)
    run(model, coupled, [batch])
    with pytest.raises(UsageError, match="compares the elements") as caught:
        run(model, coupled, pieces(batch, [2, 2]))
    assert caught.value.value == 2
    coupled.caches_gradients = True
    run(model, coupled, pieces(batch, [2, 2]))


def test_terms_and_counts_must_agree():
    class Unannounced(ToyObjective):
        def counts(self, batch):
            return {"next_token": 1.0}

    class Negative(ToyObjective):
        def counts(self, batch):
            return {"next_token": -1.0, "penalty": 1.0}

    class Fickle(ToyObjective):
        def __call__(self, model, batch, ctx):
            self.penalty += 1.0
            return super().__call__(model, batch, ctx)

    model, batch = ToyModel(), batch_of(2)
    with pytest.raises(UsageError) as caught:
        run(model, Unannounced(), [batch])
    assert caught.value.field == "penalty"
    with pytest.raises(UsageError) as caught:
        run(model, Negative(), [batch])
    assert (caught.value.field, caught.value.value) == ("next_token", -1.0)
    with pytest.raises(DachengError, match="weight of a term changed"):
        run(model, Fickle(), [batch, batch])


def test_clipping_scales_to_the_limit_and_leaves_what_is_below():
    model = ToyModel()
    run(model, ToyObjective(), ToySource().next(0))
    parameters = list(model.parameters())
    norm = gradients.grad_norm(parameters)
    expected = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters))
    assert norm == pytest.approx(expected, rel=1e-6)
    before = copy.deepcopy([p.grad for p in parameters])
    gradients.clip(parameters, norm, norm * 2)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, parameters))
    gradients.clip(parameters, norm, norm / 4)
    assert gradients.grad_norm(parameters) == pytest.approx(norm / 4, rel=1e-5)


def test_non_finite_gradients_are_named():
    model = ToyModel()
    run(model, ToyObjective(), ToySource().next(0))
    model.up.weight.grad[0, 0] = float("inf")
    model.norm.bias.grad[0] = float("nan")
    assert gradients.non_finite_names(model.named_parameters()) == ["up.weight", "norm.bias"]
