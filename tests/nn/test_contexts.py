"""Attention contexts: packed equals separate, windows, groups and soft-caps equal the plain formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.nn.contexts import AttentionLayer, DenseCausal, PackedDocuments, attention, causal_mask
from dacheng.nn.rope import Rotary, rotate


def plain(q, k, v, mask, soft_cap=None):
    """softmax(q kᵀ / sqrt(E)) v, written out."""
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    return torch.softmax(scores.masked_fill(~mask, float("-inf")), -1) @ v


def qkv(B, T, H, K, E, seed):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(B, H, T, E, generator=g),
        torch.randn(B, K, T, E, generator=g),
        torch.randn(B, K, T, E, generator=g),
    )


@settings(max_examples=25, deadline=None)
@given(
    T=st.integers(1, 20),
    groups=st.sampled_from([1, 2, 4]),
    window=st.sampled_from([None, 1, 3, 50]),
    soft_cap=st.sampled_from([None, 4.0]),
    seed=st.integers(0, 1000),
)
def test_dense_equals_the_formula(T, groups, window, soft_cap, seed):
    q, k, v = qkv(2, T, 4, 4 // groups, 8, seed)
    steps = torch.arange(T)
    layer = AttentionLayer(0, window=window, soft_cap=soft_cap)
    expected = plain(q, k, v, causal_mask(steps, steps, window), soft_cap)
    torch.testing.assert_close(DenseCausal().attend(layer, q, k, v), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), window=st.sampled_from([None, 3]))
def test_packed_documents_equal_separate_ones(lengths, window):
    T = sum(lengths)
    q, k, v = qkv(1, T, 4, 2, 8, T)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    layer = AttentionLayer(0, window=window)
    packed = PackedDocuments(ids).attend(layer, q, k, v)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = DenseCausal().attend(layer, q[:, :, part], k[:, :, part], v[:, :, part])
        torch.testing.assert_close(packed[:, :, part], alone, rtol=1e-4, atol=1e-5)
        start += length


def test_one_query_over_a_longer_past_needs_no_mask():
    q, k, v = qkv(2, 7, 4, 2, 8, 3)
    last = attention(q[:, :, -1:], k, v, None, False, AttentionLayer(0))
    whole = DenseCausal().attend(AttentionLayer(0), q, k, v)
    torch.testing.assert_close(last, whole[:, :, -1:], rtol=1e-4, atol=1e-5)


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    rotary = Rotary(8, 10000.0, 64)
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 1, 8, generator=g), torch.randn(1, 1, 1, 8, generator=g)

    def turned(x, position):
        return rotate(x, *rotary(torch.tensor([[position]])))

    assert turned(q, 13).norm().item() == pytest.approx(q.norm().item(), rel=1e-5)
    near = (turned(q, 5) * turned(k, 2)).sum().item()
    far = (turned(q, 45) * turned(k, 42)).sum().item()
    assert near == pytest.approx(far, abs=1e-4)
    torch.testing.assert_close(turned(q, 0), q)


def test_a_position_past_the_table_is_an_error():
    with pytest.raises(IndexError):
        Rotary(8, 10000.0, 16)(torch.tensor([[16]]))
