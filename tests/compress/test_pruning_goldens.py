"""Masks and weights of the papers' own code: locuslab/wanda and IST-DASLab/sparsegpt (goldens/make_pruning.py)."""

from __future__ import annotations

import json

import pytest
import torch

from dacheng.compress.prune.magnitude import magnitude
from dacheng.compress.prune.sparsegpt import sparsegpt
from dacheng.compress.prune.sparsity import Sparsity
from dacheng.compress.prune.wanda import wanda

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def golden(goldens):
    return json.loads((goldens / "pruning.json").read_text(encoding="utf-8"))


def sparsity(case):
    return Sparsity.parse(case["ratio"] if "ratio" in case else f"{case['m'] - case['n']}:{case['m']}")


def cases(golden, method):
    found = [case for case in golden["cases"] if case["method"] == method]
    assert len(found) >= 4
    return found


def test_magnitude_prunes_what_the_code_prunes(golden):
    weight = torch.tensor(golden["weight"])
    for case in cases(golden, "magnitude"):
        mask = magnitude(weight, sparsity(case))
        assert torch.equal(weight * mask == 0, torch.tensor(case["zeros"]).bool()), case


def test_wanda_prunes_what_the_code_prunes(golden):
    weight, inputs = torch.tensor(golden["weight"]), torch.tensor(golden["inputs"])
    for case in cases(golden, "wanda"):
        mask = wanda(weight, inputs.square().sum(0), sparsity(case))
        assert torch.equal(weight * mask == 0, torch.tensor(case["zeros"]).bool()), case


def test_wanda_is_no_layer_wise_threshold(golden):
    """What torchao calls Wanda compares |w|·‖x‖² over the layer: another mask."""
    weight, sqnorm = torch.tensor(golden["weight"]), torch.tensor(golden["inputs"]).square().sum(0)
    ours = wanda(weight, sqnorm, Sparsity(0.5))
    layer_wise = magnitude(weight * sqnorm, Sparsity(0.5))
    assert (ours != layer_wise).float().mean() > 0.05
    assert (~ours).sum(1).unique().tolist() == [8]  # the same number in every row


def test_sparsegpt_leaves_what_the_code_leaves(golden):
    weight, inputs = torch.tensor(golden["weight"]), torch.tensor(golden["inputs"])
    sequences = len(inputs) / golden["sequence_length"]
    hessian = 2 / sequences * inputs.T @ inputs
    for case in cases(golden, "sparsegpt"):
        found = sparsegpt(weight, hessian, sparsity(case), block=case["block"])
        expected = torch.tensor(case["pruned"])
        assert torch.equal(found.weight == 0, expected == 0), case
        assert (found.weight - expected).abs().max() < 1e-4 * expected.abs().max(), case
        assert torch.equal(found.mask, expected != 0) and found.notes == []
