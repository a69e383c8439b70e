"""SmolLM2-135M and Gemma-3-270M from their GGUF files say what transformers' dequantised models say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf_files import gemma_file, smollm2_file

from dacheng.engine import Engine
from dacheng.formats.export import export_gguf
from dacheng.formats.loading import load_model
from dacheng.formats.verify import verify
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.packed import use_exact
from dacheng.protocols import SamplingParams

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "real_models.json"
GREEDY = SamplingParams(max_tokens=64, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    paths = {}

    def path(name: str) -> Path:
        if name not in paths:
            folder = tmp_path_factory.mktemp(name)
            paths[name] = smollm2_file() if name == "smollm2" else gemma_file(folder / "gemma.gguf")
        return paths[name]

    return path


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_logits_and_greedy_tokens_are_the_references(files, name):
    loaded = load_model(files(name))
    assert loaded.notes == []
    for case in json.loads(GOLDENS.read_text(encoding="utf-8"))[name]:
        assert loaded.tokenizer.encode(case["prompt"], allow_special=True) == case["ids"]
        ids = torch.tensor([case["ids"]])
        with torch.inference_mode():
            hidden = loaded.model(ids, torch.arange(ids.shape[1])[None], DenseCausal())
            logits = loaded.model.head(hidden[0, -1])
        expected = torch.tensor(case["logits"])
        difference = (logits[case["index"]] - expected).abs().max()
        assert difference < 1e-3 * expected.abs().max(), difference
        assert logits.norm().item() == pytest.approx(case["norm"], rel=1e-3)
        found = Engine(loaded.model, None).generate([case["ids"]], [GREEDY])[0]
        assert list(found.token_ids) == case["greedy"], case["prompt"]


@pytest.mark.slow
def test_packed_weights_say_the_same(files):
    """The same numbers, dequantised when they are used: no weight is rounded twice."""
    case = json.loads(GOLDENS.read_text(encoding="utf-8"))["smollm2"][0]
    loaded = load_model(files("smollm2"), packed=True)
    use_exact(loaded.model)
    greedy = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    found = Engine(loaded.model, None).generate([case["ids"]], [greedy])[0]
    assert list(found.token_ids) == case["greedy"][:8]
    packed = sum(buffer.numel() for name, buffer in loaded.model.named_buffers() if name.endswith("packed"))
    assert packed < 100e6  # 134.5 million weights


@pytest.mark.slow
@pytest.mark.parametrize(("format", "largest"), [("f32", 1e-4), ("q8_0", 2.0)])
def test_what_is_exported_loads_again(files, tmp_path, format, largest):
    out = tmp_path / "again.gguf"
    assert export_gguf(files("smollm2"), out, format) == []
    found = verify(files("smollm2"), out, texts=["The capital of France is Paris. def main():\n    return 0\n"])
    assert found["max_abs"] < largest
    assert found["top1_agreement"] > (0.999 if format == "f32" else 0.9)
