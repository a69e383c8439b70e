"""docs/guide/add-a-family.md does what it says: its code adds a family that agrees with transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from dacheng.errors import DachengError, UsageError
from dacheng.formats.huggingface import families
from dacheng.formats.huggingface.llama import Llama
from dacheng.formats.model_directory import load_model, save_model
from dacheng.formats.safetensors_io import read_tensors
from dacheng.nn.contexts import DenseCausal

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "add-a-family.md"


@pytest.fixture
def code(monkeypatch) -> str:
    monkeypatch.setattr(families, "FAMILIES", list(families.FAMILIES))  # what a test registers ends with it
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)
    return block


@pytest.mark.oracle
def test_the_pages_code_adds_a_family_in_under_sixty_lines(code, goldens, tmp_path):
    golden = goldens / "added_family" / "starcoder2"
    assert len(code.splitlines()) < 60
    with pytest.raises(DachengError, match="not supported"):
        load_model(golden)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "guide"})

    expected = read_tensors(golden / "expected.safetensors")
    loaded = load_model(golden)
    assert loaded.model.traits.window is not None
    positions = torch.arange(expected["ids"].shape[1]).expand_as(expected["ids"])
    with torch.no_grad():
        model = load_model(golden, dtype="float32").model
        logits = model.head(model(expected["ids"], positions, DenseCausal()))
    assert expected["logits"].std() > 1
    assert (logits - expected["logits"]).abs().max() < 1e-4

    save_model(tmp_path / "copy", loaded.model)
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["model_type"] == "starcoder2"
    theirs, ours = read_tensors(golden / "model.safetensors"), read_tensors(tmp_path / "copy" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_name_is_registered_once_and_our_own_family_stays_the_last(code):
    class Another(Llama):
        model_type = "another"

    families.register(Another())
    assert [family.model_type for family in families.FAMILIES[-2:]] == ["another", "dacheng"]
    for taken in (Another(), Llama()):
        with pytest.raises(UsageError) as caught:
            families.register(taken)
        assert caught.value.field == "model_type"
