"""Adapters that PEFT wrote, on the same bases, against PEFT's own logits (goldens/peft, make_peft.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dacheng.adapt import attach, detach, merge, rows_of
from dacheng.formats.model_directory import load_model
from dacheng.formats.peft import read_adapter, write_adapter
from dacheng.formats.safetensors_io import read_tensors
from dacheng.nn.contexts import DenseCausal

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
CASES = sorted(path.name for path in (GOLDENS / "peft").iterdir())
TOLERANCE = 1e-5


@torch.no_grad()
def logits_of(model, ids):
    return model.head(model(ids, torch.arange(ids.shape[1]).expand_as(ids), DenseCausal()))


def adapted(case):
    """(model, adapter, its number, what is expected)."""
    base = json.loads((GOLDENS / "peft" / case / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = load_model(GOLDENS / base, dtype="float32").model
    adapter = read_adapter(GOLDENS / "peft" / case, model)
    return model, adapter, attach(model, adapter), read_tensors(GOLDENS / "peft" / case / "expected.safetensors")


def close(found, expected):
    """Within 1e-5 of the largest logit: they are whole units here."""
    return (found - expected).abs().max() < TOLERANCE * max(1.0, expected.abs().max())


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_peft(case):
    model, _, number, expected = adapted(case)
    ids = expected["ids"]
    base = logits_of(model, ids)
    with rows_of(model).use(number):
        found = logits_of(model, ids)
    assert close(found, expected["logits"]) and (found - base).abs().max() > 0.1
    mixed = torch.tensor([[0], [number]]).expand_as(ids)  # the first row stays the base's, to the bit
    with torch.no_grad(), rows_of(model).use(mixed):
        hidden = model(ids, torch.arange(ids.shape[1]).expand_as(ids), DenseCausal())
        rows = model.head(hidden)
    assert torch.equal(rows[0], base[0]) and close(rows[1], expected["logits"][1])
    detach(model, number)
    assert torch.equal(logits_of(model, ids), base)


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_merged_equals_peft_merged(case):
    model, _, number, expected = adapted(case)
    before = logits_of(model, expected["ids"])
    merged = merge(model, number)
    assert merged.error < 1e-5 * max(1.0, merged.scale)
    assert close(logits_of(model, expected["ids"]), expected["merged"])
    merged.undo()
    assert torch.equal(logits_of(model, expected["ids"]), before)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_read_again(case, tmp_path):
    """With PEFT's own tensor names, ranks and scales."""
    model, adapter, _, _ = adapted(case)
    write_adapter(tmp_path / "copy", adapter, model)
    peft, ours = (
        read_tensors(GOLDENS / "peft" / case / "adapter_model.safetensors"),
        read_tensors(tmp_path / "copy" / "adapter_model.safetensors"),
    )
    assert ours.keys() == peft.keys()
    assert all(torch.equal(ours[name], peft[name]) for name in peft)
    again = read_adapter(tmp_path / "copy", model)
    assert again.parts.keys() == adapter.parts.keys() and again.base == adapter.base
    for name, part in adapter.parts.items():
        assert again.parts[name].scale == pytest.approx(part.scale, rel=1e-9)
