"""`dacheng export --adapter`: a plain model that says what base and adapter said together."""

from __future__ import annotations

import shutil

import pytest
import torch
from adapter_fakes import drawn

from dacheng.adapt import attach, rows_of
from dacheng.cli.export import export
from dacheng.formats.model_directory import load_model
from dacheng.formats.peft import write_adapter
from dacheng.nn.contexts import DenseCausal

IDS = torch.arange(20).view(2, 10) * 3 % 90


@torch.no_grad()
def logits(model):
    return model.head(model(IDS, torch.arange(10).expand_as(IDS), DenseCausal()))


@pytest.mark.parametrize("settings", [{}, {"use_dora": True, "targets": ("q_proj", "up_proj")}])
def test_exported_with_its_adapter(goldens, tmp_path, settings, capsys):
    shutil.copytree(goldens / "llama" / "gqa_tied", tmp_path / "base")
    loaded = load_model(tmp_path / "base", dtype="float32")
    adapter = drawn(loaded.model, **settings)
    write_adapter(tmp_path / "adapter", adapter, loaded.model)
    base = logits(loaded.model)
    rows_of(loaded.model, make=True).default = attach(loaded.model, adapter)
    expected = logits(loaded.model)
    assert export(str(tmp_path / "base"), out=tmp_path / "out", adapter=tmp_path / "adapter") == 0
    assert "the adapter is merged" in "".join(capsys.readouterr())
    found = load_model(tmp_path / "out")
    assert not [name for name in found.model.state_dict() if "adapters" in name]
    assert (logits(found.model.float()) - expected).abs().max() < 1e-4 < 0.5 < (expected - base).abs().max()
