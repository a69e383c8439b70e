"""Live against transformers, where it is installed beside dacheng: `pytest -m peer tests/models`."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dacheng.formats.huggingface.llama import Llama
from dacheng.formats.model_directory import load_model, save_model
from dacheng.formats.safetensors_io import read_tensors
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.moe import MoETraits

pytestmark = pytest.mark.peer
transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-4
FAMILIES = Path(__file__).resolve().parent.parent / "goldens" / "families"


@torch.no_grad()
def ours(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    return model.head(model(ids, torch.arange(ids.shape[1]).expand_as(ids), DenseCausal()))


@torch.no_grad()
def make(traits: DecoderTraits, seed: int) -> Decoder:
    model, generator = Decoder(traits), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    return model.eval()


TRAITS = DecoderTraits(vocab_size=80, width=48, layers=3, heads=6, max_positions=64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "changes",
    [
        {"tied_head": False},
        {"kv_heads": 2, "rope_theta": 1e6},
        {"kv_heads": 1, "attention_bias": True, "mlp_bias": True, "tied_head": False},
        {"head_width": 16, "mlp_width": 72, "activation": "geglu_tanh", "norm_eps": 1e-3},
    ],
    ids=["mha", "gqa", "mqa with biases", "wide heads, gelu"],
)
def test_transformers_loads_what_we_write(tmp_path, changes, seed):
    model = make(DecoderTraits(**{**TRAITS.to_dict(), **changes}), seed)
    save_model(tmp_path / "m", model)
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, output_loading_info=True
    )
    assert type(peer).__name__ == "LlamaForCausalLM"
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(80, (2, 40), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits = peer(ids).logits
    assert logits.std() > 1
    assert (ours(model, ids) - logits).abs().max() < TOLERANCE


@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back_again_is_the_same_to_the_bit(tmp_path, tied):
    model = make(DecoderTraits(**{**TRAITS.to_dict(), "tied_head": tied, "kv_heads": 3}), 0)
    save_model(tmp_path / "ours", model, dtype="bfloat16")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert peer.dtype == torch.bfloat16  # config.json says so
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    a, b = load_model(tmp_path / "ours"), load_model(tmp_path / "theirs")
    assert a.model.traits == b.model.traits
    for name, tensor in a.model.state_dict().items():
        assert torch.equal(tensor, b.model.state_dict()[name]), name


def test_bfloat16_stays_within_its_own_rounding(tmp_path):
    """Compared in bfloat16 both are off the float32 logits by rounding; ours must not be further off than theirs by
    more than half."""
    model = make(TRAITS, 0)
    save_model(tmp_path / "m", model, dtype="bfloat16")
    ids = torch.randint(80, (4, 32), generator=torch.Generator().manual_seed(1))
    exact = ours(load_model(tmp_path / "m", dtype="float32").model, ids)
    here = (ours(load_model(tmp_path / "m").model, ids) - exact).abs().mean()
    with torch.no_grad():
        peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
        there = (peer(ids).logits.float() - exact).abs().mean()
    assert here < 1.5 * there


def peers_logits(directory, ids: torch.Tensor) -> torch.Tensor:
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        return peer.eval()(ids).logits


@pytest.mark.parametrize("case", sorted(path.name for path in FAMILIES.iterdir()))
def test_transformers_loads_what_we_write_for_every_family(tmp_path, case):
    """The golden's traits with other weights, in float32."""
    model, generator = load_model(FAMILIES / case, dtype="float32").model, torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            centre = 1.0 if "norm" in name and name.endswith("weight") and not model.traits.norm_offset else 0.0
            tensor.copy_(torch.empty(tensor.shape).normal_(centre, 0.4, generator=generator))
    save_model(tmp_path / "m", model)
    ids = torch.randint(64, (2, 24), generator=generator)
    logits = peers_logits(tmp_path / "m", ids)
    assert logits.std() > 0.5
    assert (ours(model, ids) - logits).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({"width": 30, "head_width": 8, "heads": 4, "mlp_bias": True}, "smollm3"),
        ({"width": 30, "head_width": 8, "heads": 4, "kv_heads": 2}, "mistral"),
        ({"window": 7, "window_pattern": "SL", "head_width": 10}, "smollm3"),
        ({"rope_fraction": 0.5, "head_width": 12}, "phi3"),
        ({"attention_bias": True, "output_bias": False, "head_width": 12}, "qwen2"),
        ({"qk_norm": True, "qk_norm_weight": True, "qk_norm_whole": True, "norm_placement": "post", "head_width": 12},
         "olmo2"),
        ({"moe": MoETraits(experts=4, experts_per_token=2, expert_width=16, balance_loss=0.01, router_z_loss=0.001)},
         "mixtral"),
        ({"moe": MoETraits(experts=4, experts_per_token=2, expert_width=16, pattern="MD"), "qk_norm": True,
          "qk_norm_weight": True, "mlp_width": 40}, "qwen3_moe"),
    ],
)  # fmt: skip
def test_traits_of_our_own_choice_are_computed_alike(tmp_path, changes, model_type):
    model = make(replace(TRAITS, **changes), 1)
    save_model(tmp_path / "m", model)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == model_type
    assert load_model(tmp_path / "m").model.traits.moe == model.traits.moe  # the weights of its losses with it
    ids = torch.randint(80, (2, 24), generator=torch.Generator().manual_seed(1))
    assert (ours(model, ids) - peers_logits(tmp_path / "m", ids)).abs().max() < TOLERANCE


def test_longer_texts_use_the_long_factors_as_transformers_does(tmp_path):
    """transformers changes a whole text's angles at the length of training; ours is built for one or the other."""
    model = load_model(FAMILIES / "phi3_longrope", dtype="float32").model
    save_model(tmp_path / "m", model)
    traits = model.traits
    long = Decoder(replace(traits, rope_scaling=replace(traits.rope_scaling, long=True)))
    long.load_state_dict(model.state_dict())
    ids = torch.randint(64, (1, 60), generator=torch.Generator().manual_seed(1))
    assert (ours(long, ids) - peers_logits(tmp_path / "m", ids)).abs().max() < TOLERANCE
    with pytest.raises(IndexError, match="past the model's 32"):
        ours(model, ids)


@pytest.mark.parametrize(("name", "folder"), [("make_llama_parity", "llama"), ("make_family_parity", "families")])
def test_goldens_are_what_the_script_makes(goldens, tmp_path, name, folder):
    spec = importlib.util.spec_from_file_location(name, goldens / f"{name}.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(tmp_path)
    for case in script.CASES:
        made, kept = tmp_path / case, goldens / folder / case
        assert {p.name for p in made.iterdir()} == {p.name for p in kept.iterdir()}
        expected, found = read_tensors(kept / "expected.safetensors"), read_tensors(made / "expected.safetensors")
        assert torch.equal(found["ids"], expected["ids"])
        assert (found["logits"] - expected["logits"]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_transformers_reads_our_tokenizer_and_its_special_ids(tmp_path, kind):
    from dacheng.text import train_tokenizer

    texts = ["the quick brown fox jumps over the lazy dog " * 5, "大成若缺，其用不弊。" * 5, "a b c\n\n  d\te 123 4567"]
    tokenizer = train_tokenizer(texts, kind=kind, vocab_size=600)
    model = make(DecoderTraits(**{**TRAITS.to_dict(), "vocab_size": tokenizer.vocab_size}), 0)
    save_model(tmp_path / "m", model, tokenizer)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    for text in [*texts, "unseen: naïve 😀 café 大象", " leading", "trailing  "]:
        ids = tokenizer.encode(text)
        assert peer(text, add_special_tokens=False)["input_ids"] == ids
        assert peer.decode(ids, clean_up_tokenization_spaces=False) == tokenizer.decode(ids)
    assert (peer.eos_token_id, peer.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "m")
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "m")
    assert (generation.eos_token_id, generation.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)


def test_greedy_generation_by_transformers_follows_our_logits(tmp_path):
    model = make(TRAITS, 5)
    save_model(tmp_path / "m", model, generation={"do_sample": False, "max_new_tokens": 12, "eos_token_id": None})
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    expected = peer.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0)
    for _ in range(12):
        ids = torch.cat((ids, ours(model, ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(ids, expected)


def test_every_field_that_transformers_writes_is_understood(tmp_path):
    config = transformers.LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 7e4})
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    traits, notes = Llama().read(json.loads(path.read_text()), path)
    assert traits.rope_theta == 7e4
    assert notes == []
