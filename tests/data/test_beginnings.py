"""Conversations that begin alike share their beginning: fewer tokens, the loss and gradients of each in full."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.adapt import LoRAConfig, add_lora
from dacheng.data.batches import IGNORED
from dacheng.data.beginnings import MAX_BRANCHES, MIN_SHARED, TreeSource, trees
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.objectives.base import StepContext
from dacheng.objectives.next_token import NextToken

CONTEXT = 256


def chat(beginning, question, answer):
    ids = np.array([*beginning, *question, *answer], np.int32)
    mask = np.zeros(len(ids), np.bool_)
    mask[-len(answer) :] = True
    return ids, mask


def family(seed=0, texts=3, questions=3):
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(texts):
        beginning = draw.integers(0, 60, draw.integers(MIN_SHARED, 70))
        for _ in range(questions):
            found.append(chat(beginning, draw.integers(0, 60, draw.integers(3, 9)), draw.integers(0, 60, 5)))
    return [found[i] for i in draw.permutation(len(found))]


def total(model, source):
    """Loss and gradients over all rows."""
    for parameter in model.parameters():
        parameter.grad = None
    loss = count = 0.0
    for row in range(source.packing.rows):
        batch = source.read([row])
        terms, _ = NextToken()(model, batch, StepContext())
        terms["next_token"].sum.backward()
        loss, count = loss + float(terms["next_token"].sum.detach()), count + NextToken().counts(batch)["next_token"]
    return loss, count, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("windows", [{}, {"window": 20, "window_pattern": "LS"}], ids=["full", "windows"])
def test_shared_is_separate(windows):
    traits = DecoderTraits(vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, max_positions=CONTEXT, **windows)
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(0))
    add_lora(model, LoRAConfig(rank=2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
    chats = family()
    shared = TreeSource(trees(chats, CONTEXT), CONTEXT, 1)
    alone = TreeSource([trees([c], CONTEXT)[0] for c in chats], CONTEXT, 1)
    assert shared.conversations == alone.conversations == len(chats) and shared.saved > 200 and alone.saved == 0
    assert shared.packing.tokens == alone.packing.tokens - shared.saved
    (one, n, grads), (other, m, separate) = total(model, shared), total(model, alone)
    assert n == m == 5 * len(chats) and one == pytest.approx(other, rel=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, separate[name], rtol=2e-3, atol=2e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 12), st.integers(100, 300))
def test_every_conversation_is_there_once(seed, texts, questions, most):
    chats = [c for c in family(seed, texts, questions) if len(c[0]) <= most]
    found = trees(chats, most)
    seen = []
    for tree in found:
        assert len(tree.tokens) <= most and tree.branches.max() <= MAX_BRANCHES
        beginning = tree.branches == 0
        for number in range(1, int(tree.branches.max()) + 1) if tree.branches.any() else [0]:
            own = beginning | (tree.branches == number)
            ids, mask = tree.tokens[own], tree.targets[own]
            assert (tree.positions[own] == np.arange(own.sum())).all()
            assert not tree.branches.any() or not mask[: int(beginning.sum()) + 1].any()
            seen.append((ids.tobytes(), mask.tobytes()))
    assert sorted(seen) == sorted((ids.tobytes(), mask.tobytes()) for ids, mask in chats)


def test_the_rows_teach_what_the_assistant_says():
    chats = family(3, texts=2, questions=4)
    source = TreeSource(trees(chats, CONTEXT), CONTEXT, 1)
    said = []
    for row in range(source.packing.rows):
        batch = source.read([row])
        said += batch.targets[batch.targets != IGNORED].tolist()
    assert sorted(said) == sorted(int(i) for ids, mask in chats for i in ids[mask])
    again = TreeSource(trees(chats[::-1], CONTEXT), CONTEXT, 1)
    assert again.fingerprint == source.fingerprint  # the same rows, in whatever order the conversations came
