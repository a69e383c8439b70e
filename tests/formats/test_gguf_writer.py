"""GGUF out: what is written is read again, by us and (peer) by the gguf package and transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dacheng.errors import DachengError
from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.gguf.model import gguf_model
from dacheng.formats.gguf.writer import write_gguf
from dacheng.formats.huggingface.families import FAMILIES, family_of_config
from dacheng.models.traits import DecoderTraits
from dacheng.nn.rope import RopeScaling
from dacheng.ops.qtensor import QTensor
from dacheng.ops.quantize import quantize

VOCABULARY = 64
TOKENS = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"] + [f"▁{i}" for i in range(VOCABULARY - 3)],
    "tokenizer.ggml.scores": [-float(i) for i in range(VOCABULARY)],
    "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (VOCABULARY - 3),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": True,
}
BASE = DecoderTraits(
    vocab_size=VOCABULARY, width=64, layers=2, heads=4, kv_heads=2, mlp_width=96, max_positions=128, norm_eps=1e-5,
    tied_head=False, rope_theta=5000.0,
)  # fmt: skip
LLAMA3 = RopeScaling(
    kind="llama3", factor=8.0, original_positions=64, low_frequency_factor=1.0, high_frequency_factor=4.0
)
GEMMA3 = replace(
    BASE, layers=7, head_width=32, norm_offset=True, norm_placement="both", activation="geglu_tanh", qk_norm=True,
    qk_norm_weight=True, embedding_scale=8.0, tied_head=True, window=32, window_pattern="SSSSSL", rope_theta=1e6,
    rope_window_theta=1e4,
)  # fmt: skip
CASES = {
    "llama": ("llama", BASE),
    "llama_tied_wide_heads": ("llama", replace(BASE, tied_head=True, head_width=32)),
    "llama_biases": ("llama", replace(BASE, attention_bias=True, mlp_bias=True)),
    "llama_llama3": ("llama", replace(BASE, rope_scaling=LLAMA3)),
    "llama_linear": ("llama", replace(BASE, rope_scaling=RopeScaling(kind="linear", factor=2.5))),
    "llama_yarn": ("llama", replace(BASE, rope_scaling=RopeScaling(kind="yarn", factor=4.0, original_positions=32))),
    "qwen2": ("qwen2", replace(BASE, attention_bias=True, output_bias=False)),
    "qwen3": ("qwen3", replace(BASE, qk_norm=True, qk_norm_weight=True, head_width=32, tied_head=True)),
    "gemma3": ("gemma3_text", GEMMA3),
    # what transformers' reader of GGUF takes for granted: the widths of heads of the first models
    "qwen3_published_width": ("qwen3", replace(BASE, qk_norm=True, qk_norm_weight=True, head_width=128)),
    "gemma3_published_width": ("gemma3_text", replace(GEMMA3, head_width=256)),
}
# It does not read scalings of positions, biases of Llama, nor other widths of heads.
OF_TRANSFORMERS = ("llama", "llama_tied_wide_heads", "qwen2", "qwen3_published_width", "gemma3_published_width")


def made(case, seed=0):
    """Family, config, and tensors under its names: random, norms and biases too."""
    model_type, traits = CASES[case]
    family = next(family for family in FAMILIES if family.model_type == model_type)
    generator = torch.Generator().manual_seed(seed)
    state = family.build(traits).state_dict()
    state = {name: 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    return family, family.from_traits(traits), family.export_tensors(state, traits)


@pytest.mark.parametrize("case", CASES)
def test_a_float32_file_is_the_model(case, tmp_path):
    _, config, tensors = made(case)
    notes = write_gguf(tmp_path / "m.gguf", config, tensors, TOKENS, "{{ messages }}", "f32", name="A model")
    model = gguf_model(tmp_path / "m.gguf")
    assert notes == [] and model.notes == []
    assert model.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        offset = 1e-6 if "gemma" in case and name.endswith("norm.weight") else 0
        assert torch.allclose(model.tensors[name], tensor, rtol=0, atol=offset), name
    read = [family_of_config(c, Path("x")).read(c, Path("x"))[0] for c in (config, model.config)]
    assert read[0] == read[1]
    assert model.chat_template == "{{ messages }}"
    assert {k: v for k, v in model.tokenizer_metadata.items() if k != "tokenizer.chat_template"} == TOKENS
    assert GGUFFile(tmp_path / "m.gguf").metadata["general.name"] == "A model"


@pytest.mark.parametrize("format", ["f16", "bf16", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("case", ["llama", "qwen3"])
def test_matrices_are_in_the_format_and_vectors_in_float32(case, format, tmp_path):
    _, config, tensors = made(case)
    notes = write_gguf(tmp_path / "m.gguf", config, tensors, TOKENS, format=format)
    file = GGUFFile(tmp_path / "m.gguf")
    tied = config["tie_word_embeddings"]
    head = "token_embd.weight" if tied else "output.weight"
    for name, entry in file.tensors.items():
        expected = "F32" if len(entry.shape) == 1 else format.upper()
        if name == head and format.startswith("q4"):
            expected = "Q8_0"
        assert entry.format.name == expected, name
    assert notes == (["the head is Q8_0: it suffers most from four bits"] if format.startswith("q4") else [])
    assert file.metadata["general.file_type"] == {"f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_1": 3}[format]
    model = gguf_model(tmp_path / "m.gguf", packed=True)
    name = "model.layers.1.self_attn.q_proj.weight"  # permuted before it is packed, and back while it is
    found = model.tensors[name]
    assert isinstance(found, QTensor) == format.startswith("q")
    packed = QTensor.from_float(tensors[name], format)
    assert torch.equal(found.dequantize() if isinstance(found, QTensor) else found.float(), packed.dequantize())


def test_a_packed_model_is_written_again(tmp_path):
    _, config, tensors = made("llama")
    write_gguf(tmp_path / "a.gguf", config, tensors, TOKENS, format="q8_0")
    packed = gguf_model(tmp_path / "a.gguf", packed=True)
    write_gguf(tmp_path / "b.gguf", packed.config, packed.tensors, TOKENS, format="bf16")
    again = gguf_model(tmp_path / "b.gguf")
    name = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(again.tensors[name], packed.tensors[name].dequantize(torch.bfloat16))


def test_rows_that_are_no_multiple_of_a_block_are_half_floats(tmp_path, goldens):
    folder = goldens / "families" / "qwen2"
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    notes = write_gguf(tmp_path / "m.gguf", config, tensors, TOKENS, format="q8_0")
    assert notes == ["15 matrices are F16: their rows are no multiple of 32 (token_embd.weight is one)"]
    assert {entry.format.name for entry in GGUFFile(tmp_path / "m.gguf").tensors.values()} == {"F16", "F32"}


def test_a_vocabulary_shorter_than_the_embedding_is_filled_up(tmp_path):
    _, config, tensors = made("qwen3")
    short = TOKENS | {
        f"tokenizer.ggml.{key}": TOKENS[f"tokenizer.ggml.{key}"][:-4] for key in ("tokens", "scores", "token_type")
    }
    assert write_gguf(tmp_path / "m.gguf", config, tensors, short, format="f16") == [
        "4 rows of the embedding have no token: named [PAD…]"
    ]
    found = gguf_model(tmp_path / "m.gguf").tokenizer_metadata
    assert found["tokenizer.ggml.tokens"][-4:] == [f"[PAD{i}]" for i in range(60, 64)]
    assert found["tokenizer.ggml.token_type"][-4:] == [5] * 4 and len(found["tokenizer.ggml.scores"]) == VOCABULARY


def test_without_a_tokenizer_a_note_says_so(tmp_path):
    _, config, tensors = made("llama")
    notes = write_gguf(tmp_path / "m.gguf", config, tensors, format="f16")
    assert notes == ["there is no tokenizer in the file: llama.cpp will not take text"]
    assert gguf_model(tmp_path / "m.gguf").tokenizer() is None


REFUSED = {
    "format": (lambda c, t: {"format": "q2_k"}, "format", "not written to GGUF"),
    "family": (lambda c, t: c.update(model_type="gpt2"), "model_type", "kind of model is not written"),
    "tensor": (lambda c, t: t.update({"model.extra.weight": torch.ones(2, 2)}), "model.extra.weight", "no name for"),
    "tied with a head": (lambda c, t: c.update(tie_word_embeddings=True), "lm_head.weight", "ties the head"),
    "more tokens": (lambda c, t: c.update(vocab_size=VOCABULARY - 1), "vocab_size", "the tokenizer has 64 tokens"),
    "infinite": (
        lambda c, t: t["model.layers.1.mlp.up_proj.weight"].view(-1)[5:6].fill_(float("inf")),
        "model.layers.1.mlp.up_proj.weight", "do not fit",
    ),
    "not a number": (
        lambda c, t: t["model.layers.1.mlp.up_proj.weight"].view(-1)[5:6].fill_(float("nan")),
        "model.layers.1.mlp.up_proj.weight", "do not fit",
    ),
    "too large": (lambda c, t: t["lm_head.weight"].view(-1)[:1].fill_(1e5), "lm_head.weight", "do not fit F16"),
    "betas of YaRN": (
        lambda c, t: c.update(rope_parameters={"rope_type": "yarn", "factor": 2.0, "beta_fast": 4.0}),
        "rope_parameters", "computes YaRN with",
    ),
    "scaling": (
        lambda c, t: c.update(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), "rope_parameters",
        "not written to GGUF",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_named_and_the_old_file_stays(case, tmp_path):
    change, field, match = REFUSED[case]
    _, config, tensors = made("llama")
    options = change(config, tensors)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(DachengError, match=match) as caught:
        write_gguf(
            path, config, tensors, TOKENS, **({"format": "f16"} | (options if isinstance(options, dict) else {}))
        )
    assert caught.value.field == field
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("case", "change", "field"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0}, "window"),
        ("llama", {"hidden_act": "gelu_pytorch_tanh"}, "activation"),
        ("gemma3", {"layer_types": ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]}, "layer_types"),
        ("gemma3", {"query_pre_attn_scalar": 12}, "query_pre_attn_scalar"),
    ],
)
def test_what_the_file_would_not_say_is_refused(case, change, field, tmp_path):
    _, config, tensors = made(case)
    config |= change
    if "hidden_act" in change or "use_sliding_window" in change:
        config.pop("layer_types", None)
    with pytest.raises(DachengError) as caught:
        write_gguf(tmp_path / "m.gguf", config, tensors, TOKENS, format="f16")
    assert caught.value.field == field and not list(tmp_path.iterdir())


# --- peers ------------------------------------------------------------------------------------------------------------
@pytest.mark.peer
@pytest.mark.parametrize("format", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"])
def test_the_gguf_package_reads_the_file(format, tmp_path):
    gguf = pytest.importorskip("gguf")
    _, config, tensors = made("qwen3")
    write_gguf(tmp_path / "m.gguf", config, tensors, TOKENS, "{{ x }}", format)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    ours = GGUFFile(tmp_path / "m.gguf")
    assert [t.name for t in reader.tensors] == list(ours.tensors)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(torch.from_numpy(values.copy()), ours.tensor(tensor.name).float())
    field = reader.fields["tokenizer.ggml.tokens"]
    assert [bytes(field.parts[i]).decode() for i in field.data] == TOKENS["tokenizer.ggml.tokens"]
    types = reader.fields["tokenizer.ggml.token_type"].types
    assert types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
    # the very bytes of the package's own quantisation
    embedding = next(t for t in reader.tensors if t.name == "token_embd.weight")
    packed = quantize(tensors["model.embed_tokens.weight"], ours.tensors["token_embd.weight"].format)
    assert bytes(embedding.data.tobytes()) == packed.numpy().tobytes()


@pytest.mark.peer
@pytest.mark.parametrize("case", OF_TRANSFORMERS)
def test_transformers_computes_the_same_logits_from_the_file(case, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    from dacheng.nn.contexts import DenseCausal

    family, config, tensors = made(case)
    write_gguf(tmp_path / "m.gguf", config, tensors, TOKENS, format="f32")
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    traits = CASES[case][1]
    model = family.build(traits)
    model.load_state_dict(family.import_tensors(tensors, traits))
    ids = torch.randint(0, VOCABULARY, (2, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = peer(ids).logits
        found = model.head(model(ids, torch.arange(48).expand_as(ids), DenseCausal()))
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
