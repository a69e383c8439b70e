"""What we write, loaded by PEFT: `pytest -m peer tests/formats`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_fakes import drawn

from dacheng.adapt import attach, rows_of
from dacheng.formats.model_directory import load_model
from dacheng.formats.peft import write_adapter
from dacheng.nn.contexts import DenseCausal

pytestmark = pytest.mark.peer
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
GOLDENS = Path(__file__).resolve().parent.parent / "goldens"

CASES = [
    ("llama/gqa_tied", {}),
    ("llama/mqa_biases", {"use_dora": True}),
    ("llama/mha_untied", {"use_rslora": True, "targets": ("q_proj", "lm_head"), "rank_pattern": {"lm_head": 2}}),
    ("llama/mha_untied", {"targets": ("blocks.1.attention.q",), "alpha_pattern": {"blocks.1.attention.q": 3.0}}),
    ("families/phi3_window", {}),
    ("families/phi3_window", {"targets": ("attention.q", "mlp.up"), "use_rslora": True}),
    ("families/gpt2", {"targets": ("attention.q", "attention.k", "attention.v", "mlp.up")}),
    ("families/gpt_neox", {"targets": ("attention.v", "attention.o")}),
    ("families/qwen3", {"use_dora": True}),
    ("families/gemma3", {}),
    ("families/olmo2", {}),
    ("families/smollm3", {}),
    ("families/mixtral", {"targets": ("q_proj", "v_proj")}),
    ("families/deepseek_v2_lite", {"targets": ("kv_b_proj", "o_proj")}),
]


@pytest.mark.parametrize(("base", "settings"), CASES)
def test_peft_loads_what_we_write(tmp_path, base, settings):
    model = load_model(GOLDENS / base, dtype="float32").model
    adapter = drawn(model, 1, **settings)
    write_adapter(tmp_path / "adapter", adapter, model)
    number = attach(model, adapter)
    ids = torch.arange(20).view(2, 10) * 3 % model.traits.vocab_size
    with torch.no_grad(), rows_of(model).use(torch.full_like(ids, number)):
        expected = model.head(model(ids, torch.arange(10).expand_as(ids), DenseCausal()))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(GOLDENS / base, dtype=torch.float32).eval()
    with torch.no_grad():
        plain = loaded(ids).logits
        theirs = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
        found = theirs(ids).logits
    assert (found - plain).abs().max() > 0.05
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    trained = {n for n, _ in theirs.named_parameters() if "lora_" in n}
    assert len(trained) >= 2
