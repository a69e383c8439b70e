"""llama.cpp computes from our files what we compute, and from files as its converter writes them what we read."""

from __future__ import annotations

from pathlib import Path

import gguf_converted as converted
import pytest
import torch
from gguf_files import smollm2_file
from llama_cpp import continuations, largest_difference
from test_gguf_writer import CASES, TOKENS, VOCABULARY, made

from dacheng.formats.export import export_gguf
from dacheng.formats.gguf.model import gguf_model
from dacheng.formats.gguf.writer import write_gguf
from dacheng.formats.huggingface.families import family_of_config
from dacheng.formats.loading import load_model
from dacheng.models.decoder import Decoder
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.packed import pack_weights

pytestmark = pytest.mark.peer
PROMPT = torch.randint(3, VOCABULARY, (12,), generator=torch.Generator().manual_seed(0)).tolist()
STEPS = 12
# llama.cpp looks gelu up in a table of half floats; all else is float32.
TOLERANCE = {
    "gemma": 5e-3,
    "gemma2": 5e-3,
    "gemma3": 5e-3,
    "gpt2": 5e-3,
    "gpt_neox": 5e-3,
    "gemma3_published_width": 5e-3,
}


@pytest.fixture(scope="module", autouse=True)
def peer():
    pytest.importorskip("xllamacpp")


def model_of(path: Path, packed: bool = False) -> Decoder:
    source = gguf_model(path, packed)
    family = family_of_config(source.config, path)
    traits, _ = family.read(source.config, path)
    model = family.build(traits)
    model.load_state_dict(pack_weights(model, dict(family.import_tensors(source.tensors, traits))))
    return model.eval()


@torch.no_grad()
def difference(model: Decoder, prompt: list[int], ids: list[int], rows: list) -> float:
    tokens = torch.tensor([prompt + ids[:-1]])
    hidden = model(tokens, torch.arange(tokens.shape[1])[None], DenseCausal())
    return largest_difference(rows, model.head(hidden)[0, len(prompt) - 1 :])


@pytest.mark.parametrize("case", CASES)
def test_a_written_file_gives_the_same_probabilities(case, tmp_path):
    _, config, tensors = made(case)
    write_gguf(tmp_path / "m.gguf", config, tensors, TOKENS, format="f32")
    [(ids, rows)] = continuations(tmp_path / "m.gguf", [PROMPT], STEPS, 10)
    assert difference(model_of(tmp_path / "m.gguf"), PROMPT, ids, rows) < TOLERANCE.get(case, 1e-4)


@pytest.mark.parametrize("format", ["f16", "bf16", "q8_0", "q4_0", "q4_1"])
def test_every_format_is_computed_alike(format, tmp_path):
    _, config, tensors = made("llama")
    write_gguf(tmp_path / "m.gguf", config, tensors, TOKENS, format=format)
    [(ids, rows)] = continuations(tmp_path / "m.gguf", [PROMPT], STEPS, 10)
    # with blocks, llama.cpp rounds what they are multiplied with to eight bits
    assert difference(model_of(tmp_path / "m.gguf", packed=True), PROMPT, ids, rows) < 0.05


def _short(metadata, tensors):  # llama.cpp takes the long factors by the length of its cache, we by that of the text
    tensors["rope_factors_long.weight"] = tensors["rope_factors_short.weight"].clone()


def _usual_betas(metadata, tensors):  # it takes these whatever the file says
    for name in [name for name in metadata if "yarn_beta" in name]:
        del metadata[name]


def _no_window(metadata, tensors):  # it has none in this architecture
    for name in [name for name in metadata if name.endswith("sliding_window")]:
        metadata[name] = 0


CHANGES = {"phi3_longrope": _short, "llama_yarn": _usual_betas, "gpt_oss": _usual_betas, "phi3_window": _no_window,
           "mistral_window": _no_window, "mixtral_window": _no_window}  # fmt: skip


# deepseek_v2_lite: it knows these by their number of layers
@pytest.mark.parametrize("case", [case for case in converted.CASES if case != "deepseek_v2_lite"])
def test_it_agrees_on_what_a_converted_file_means(case, tmp_path, goldens):
    def change(metadata, tensors):
        metadata |= TOKENS
        CHANGES.get(case, lambda *_: None)(metadata, tensors)

    path, *_ = converted.written(case, tmp_path, goldens, change)
    [(ids, rows)] = continuations(path, [PROMPT], STEPS, 10)
    assert difference(model_of(path), PROMPT, ids, rows) < TOLERANCE.get(case, 1e-4)


@pytest.mark.slow
def test_smollm2_written_again_says_the_same(tmp_path):
    source = gguf_model(smollm2_file())
    write_gguf(tmp_path / "m.gguf", source.config, source.tensors, source.tokenizer_metadata, format="f32")
    tokenizer = source.tokenizer()
    assert tokenizer is not None
    prompt = tokenizer.encode("The capital of France is")
    [(ids, rows)] = continuations(tmp_path / "m.gguf", [prompt], 32, 5)
    model = model_of(tmp_path / "m.gguf")
    assert difference(model, prompt, ids, rows) < 1e-3
    [(of_source, _)] = continuations(smollm2_file(), [prompt], 32, 5)
    assert ids[:8] == of_source[:8]


@pytest.mark.slow
@pytest.mark.parametrize(("format", "near"), [("f32", 1e-3), ("f16", 0.05), ("q8_0", 0.5)])
def test_exported_smollm2_continues_a_text_alike(tmp_path, format, near):
    """Greedy, 64 tokens: ours from the file, and llama.cpp's from the same file. Equal up to a choice between tokens
    nearer than `near`: llama.cpp rounds activations to half floats for f16, and to eight bits for q8_0."""
    export_gguf(smollm2_file(), tmp_path / "m.gguf", format)
    loaded = load_model(tmp_path / "m.gguf", dtype="float32")
    assert loaded.tokenizer is not None
    prompts = [loaded.tokenizer.encode(text) for text in ("The capital of France is", "def fibonacci(n):\n", "Once")]
    for prompt, (ids, _) in zip(prompts, continuations(tmp_path / "m.gguf", prompts, 64, 1)):
        logits = all_logits(loaded.model, prompt, ids)
        ours = logits.argmax(-1).tolist()
        end = ours.index(loaded.tokenizer.eos_id) if loaded.tokenizer.eos_id in ours else 64  # llama.cpp bars it
        first = next((i for i in range(end) if ours[i] != ids[i]), None)
        if first is None:
            continue
        assert format != "f32"
        assert logits[first].topk(2).values.diff().abs() < near, (first, format)


def all_logits(model: Decoder, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """Of each of `ids`, the logits that choose it: (len(ids), V)."""
    tokens = torch.tensor([prompt + ids])
    with torch.inference_mode():
        hidden = model(tokens, torch.arange(tokens.shape[1])[None], DenseCausal())
        return model.head(hidden[0, len(prompt) - 1 : -1])
