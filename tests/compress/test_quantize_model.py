"""Whole models through each quantizer: what is saved, loaded, run packed, resumed and refused."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from compress_toys import toy_batches, toy_decoder, toy_directory

from dacheng.compress.calibrate import calibrate
from dacheng.compress.quantize.config import QuantizeConfig
from dacheng.compress.quantize.folding import fold, sites_of
from dacheng.compress.quantize.model import quantize_model
from dacheng.compress.quantize.smoothquant import round_inputs
from dacheng.engine import Engine
from dacheng.engine.fused import FusedCPU
from dacheng.errors import DachengError, DamagedFile, UsageError
from dacheng.formats.json_files import read_json, write_json
from dacheng.formats.model_directory import load_model, save_model
from dacheng.formats.packed import is_packed
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.packed import Packed, PackedEmbedding, use_exact
from dacheng.ops import native
from dacheng.ops.integers import IntTensor, QSpec
from dacheng.protocols import SamplingParams

INT4 = QSpec(4, 32)
CONFIGS = {
    "rtn8": QuantizeConfig("rtn", QSpec(8), QSpec(8, 32)),
    "rtn4a": QuantizeConfig("rtn", QSpec(4, 64, False)),
    "gptq4": QuantizeConfig("gptq", QSpec(4), QSpec(8, 32)),
    "gptq3": QuantizeConfig("gptq", QSpec(3, 64, False), act_order=False),
    "awq4": QuantizeConfig("awq", QSpec(4, 64, False)),
    "smooth": QuantizeConfig("smoothquant", QSpec(8)),
    "nf4": QuantizeConfig("nf4"),
    "fp8": QuantizeConfig("fp8"),
}


@torch.no_grad()
def logits(model, tokens: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return model.head(model(tokens, positions, DenseCausal()))


def off(model, other, tokens: torch.Tensor) -> float:
    """Norm of the difference of the logits over that of the first's."""
    a, b = logits(model, tokens), logits(other, tokens)
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_loaded_and_run_packed(name, tmp_path):
    config, text = CONFIGS[name], toy_batches()
    loaded = load_model(toy_directory(tmp_path / "model"), dtype="float32")
    before = copy.deepcopy(loaded.model)
    found = quantize_model(loaded.model, config, text)
    assert len(found.weights) == 14 + (config.embedding is not None)
    directory = save_model(tmp_path / "packed", loaded.model, loaded.tokenizer, dtype="float16",
                           packed=found.weights, quantization=config.to_dict())  # fmt: skip
    assert is_packed(directory) and not is_packed(tmp_path / "model")
    floats, packed = load_model(directory, dtype="float32"), load_model(directory, dtype="float32", packed=True)
    tokens = text[0]
    if config.embedding is not None:
        assert off(loaded.model, floats.model, tokens) < 1e-6
    assert off(loaded.model, floats.model, tokens) < 2e-3  # an embedding in float16
    limit = {"rtn8": 0.1, "smooth": 0.1, "fp8": 0.4}.get(name, 0.9)
    assert 0 < off(before, loaded.model, tokens) < limit
    kinds = [type(module) for module in packed.model.modules() if isinstance(module, Packed | PackedEmbedding)]
    if name == "fp8":
        assert not kinds and any("dequantised" in note and "emulated" in note for note in packed.notes)
    else:
        assert len(kinds) == len(found.weights) and not packed.notes
    use_exact(packed.model)
    assert off(floats.model, packed.model, tokens) < 5e-3  # -zero · scale in float16
    use_exact(packed.model, False)
    assert off(floats.model, packed.model, tokens) < 0.1  # inputs in eight bits
    weights = (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert weights < (tmp_path / "model" / "model.safetensors").stat().st_size / 2
    assert read_json(directory / "config.json")["quantization_config"]["method"] == config.method


def test_the_compiled_executor_takes_it(tmp_path):
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")
    loaded = load_model(toy_directory(tmp_path / "model", heads=2, kv_heads=1), dtype="float32")
    found = quantize_model(loaded.model, CONFIGS["gptq4"], toy_batches())
    save_model(tmp_path / "packed", loaded.model, loaded.tokenizer, packed=found.weights)
    packed = load_model(tmp_path / "packed", dtype="fast", packed=True).model
    assert not FusedCPU.why_not(packed)
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    (fused,) = Engine(packed, executor=FusedCPU(packed)).generate([[5, 6, 7]], params)
    (eager,) = Engine(packed).generate([[5, 6, 7]], params)
    assert fused.token_ids == eager.token_ids


def test_small_memory_keeps_the_kernels_copy_alone(tmp_path):
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")
    loaded = load_model(toy_directory(tmp_path / "model"), dtype="float32")
    found = quantize_model(loaded.model, CONFIGS["gptq4"], toy_batches())
    save_model(tmp_path / "packed", loaded.model, loaded.tokenizer, packed=found.weights)
    fast, small = (
        load_model(tmp_path / "packed", dtype="fast", packed=True, weights_memory=memory).model
        for memory in ("fast", "small")
    )
    tokens = toy_batches()[0]
    assert torch.equal(logits(fast, tokens), logits(small, tokens))
    assert sum(module.packed.numel() for module in small.modules() if isinstance(module, Packed)) == 0
    with pytest.raises(DachengError, match="only the kernels' copy") as refusal:
        small.blocks[0].mlp.up.qtensor.dequantize()
    assert refusal.value.field == "weights_memory"


def test_scaling_inputs_changes_nothing():
    for traits in ({}, {"kv_heads": 4, "activation": "gelu", "norm": "layer"}, {"norm_offset": True}):
        model, tokens = toy_decoder(**traits), toy_batches()[0]
        before = logits(model, tokens)
        count = 0
        for block in model.blocks:
            for site in sites_of(block):
                width = block.get_submodule(site.readers[0]).in_features
                fold(block, site, torch.rand(width, generator=torch.Generator().manual_seed(count)) * 3 + 0.2)
                count += 1
        assert count == {None: 3, "gelu": 3}.get(traits.get("activation"), 3) * 2
        assert float((logits(model, tokens) - before).abs().max()) < 2e-4 * float(before.abs().max())


def test_smoothing_what_a_map_makes():
    """Inputs of `down` have outliers, too: with them smoothed, eight bits a token lose less."""
    text, tokens, error = toy_batches(rows=16), toy_batches(seed=9)[0], {}
    for inner in (False, True):
        model = toy_decoder()
        with torch.no_grad():
            for block in model.blocks:
                block.mlp.up.weight[5] *= 30
                block.mlp.down.weight[:, 5] /= 30
        before = copy.deepcopy(model)
        quantize_model(model, QuantizeConfig("smoothquant", QSpec(8), inner=inner), text)
        round_inputs(model)
        error[inner] = off(before, model, tokens)
    assert error[True] < 0.8 * error[False]


def test_the_paper_order_on_inputs_with_outliers():
    """Calibrated methods change the outputs less than rounding does, and most at three bits."""
    text = toy_batches(rows=32)
    tokens, gaps = toy_batches(seed=9)[0], []
    for bits in (4, 3):
        error = {}
        for method in ("rtn", "gptq", "awq"):
            model = toy_decoder()
            quantize_model(model, QuantizeConfig(method, QSpec(bits), clip=method != "awq"), text)
            error[method] = off(toy_decoder(), model, tokens)
        assert error["gptq"] < 0.9 * error["rtn"] and error["awq"] < error["rtn"]
        gaps.append(error["rtn"] - error["gptq"])
    assert gaps[1] > gaps[0]


def test_a_stopped_call_goes_on_to_the_same_numbers(tmp_path):
    text, config = toy_batches(), CONFIGS["awq4"]
    whole = toy_decoder(layers=3)
    expected = quantize_model(whole, config, text)

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(toy_decoder(layers=3), config, text, folder=tmp_path, progress=stop)
    again, steps = toy_decoder(layers=3), []
    found = quantize_model(again, config, text, folder=tmp_path, progress=lambda done, of: steps.append(done))
    assert (
        steps == sorted(steps)
        and 1 < steps[0] < 3
        and steps[-1] == 3
        and found.errors == pytest.approx(expected.errors, rel=1e-5)
    )
    assert found.weights.keys() == expected.weights.keys()
    assert torch.equal(logits(again, text[0]), logits(whole, text[0]))


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    loaded = load_model(toy_directory(tmp_path / "model"), dtype="float32")
    found = quantize_model(loaded.model, CONFIGS["rtn8"])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(DachengError, match="the disk has 10"):
        save_model(tmp_path / "packed", loaded.model, packed=found.weights)
    assert not (tmp_path / "packed").exists()


def test_a_dead_and_a_singular_input_are_reported():
    model, text = toy_decoder(), toy_batches(rows=2, width=8)
    with torch.no_grad():
        model.blocks[0].attention_norm.weight[3] = 0.0  # never an input here
    found = quantize_model(model, QuantizeConfig("gptq", QSpec(4), damp=1e-9), text)
    assert not model.blocks[0].attention.q.weight[:, 3].any()
    assert any("damping" in note or "rounded to nearest" in note for note in found.notes)
    assert all(weight.dequantize().isfinite().all() for weight in found.weights.values())


def test_bad_input_is_refused_before_anything_is_done(tmp_path):
    model = toy_decoder()
    for config, field in (
        (QuantizeConfig("rtn", QSpec(4, 48)), "group"), (QuantizeConfig("gptq", QSpec(4)), "calibration"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as refusal:
            quantize_model(model, config)
        assert refusal.value.field == field
    assert torch.equal(model.embed.weight, toy_decoder().embed.weight)
    for wrong in ({"method": "gptk"}, {"damp": 0.0}, {"method": "smoothquant", "spec": QSpec(4)}):
        with pytest.raises(UsageError):
            QuantizeConfig(**wrong)
    loaded = load_model(toy_directory(tmp_path / "model"), dtype="float32")
    found = quantize_model(loaded.model, CONFIGS["rtn8"])
    save_model(tmp_path / "packed", loaded.model, packed=found.weights)
    with pytest.raises(UsageError, match="packed already"):
        quantize_model(load_model(tmp_path / "packed", packed=True).model, CONFIGS["rtn8"])
    broken = toy_decoder()
    with torch.no_grad():
        broken.embed.weight[7] = float("nan")
    with pytest.raises(DachengError, match="not finite"):
        quantize_model(broken, CONFIGS["gptq4"], toy_batches(rows=64))


def damage(directory, change) -> None:
    config = read_json(directory / "config.json")
    change(config["quantization_config"])
    write_json(directory / "config.json", config)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda q: q.update(quant_method="awq"), DachengError),
        (lambda q: q.update(version=9), DachengError),
        (lambda q: q.update(tensors=[]), DamagedFile),
        (lambda q: next(iter(q["tensors"].values())).update(bits=5), DamagedFile),
        (lambda q: next(iter(q["tensors"].values())).update(bits="8"), DamagedFile),
        (lambda q: next(iter(q["tensors"].values())).update(kind="exec"), DamagedFile),
        (lambda q: next(iter(q["tensors"].values())).update(shape=[64]), DamagedFile),
        (lambda q: next(iter(q["tensors"].values())).update(shape=[2**40, 2**40]), DamagedFile),
        (lambda q: next(iter(q["tensors"].values())).update(group=7), DamagedFile),
        (lambda q: q["tensors"].pop(next(iter(q["tensors"]))), DachengError),
        (lambda q: q["tensors"].update({"model.nothing.weight": {"kind": "nf4"}}), DamagedFile),
    ],
)
def test_a_damaged_directory_is_recognised(change, kind, tmp_path):
    loaded = load_model(toy_directory(tmp_path / "model"), dtype="float32")
    found = quantize_model(loaded.model, CONFIGS["rtn8"])
    save_model(tmp_path / "packed", loaded.model, packed=found.weights)
    damage(tmp_path / "packed", change)
    for packed in (False, True):
        with pytest.raises(kind):
            load_model(tmp_path / "packed", packed=packed)


def test_mixed_formats_and_errors_by_map():
    text = toy_batches()
    model = toy_decoder()
    config = QuantizeConfig(
        "gptq", QSpec(4), specs=(("blocks.0.attention.q", QSpec(8)), ("blocks.1.mlp.down", QSpec(2)))
    )
    found = quantize_model(model, config, text)
    bits = {name: weight.spec.bits for name, weight in found.weights.items() if isinstance(weight, IntTensor)}
    assert bits["blocks.0.attention.q.weight"] == 8 and bits["blocks.0.attention.k.weight"] == 4
    assert (
        found.errors["blocks.0.attention.q"] < found.errors["blocks.0.attention.k"] < found.errors["blocks.1.mlp.down"]
    )
    stats = calibrate(toy_decoder(), text, ["hessian"])["blocks.0.attention.k"]
    weight, now = toy_decoder().blocks[0].attention.k.weight.detach(), model.blocks[0].attention.k.weight.detach()
    x = torch.linalg.cholesky(stats.hessian + 1e-6 * torch.eye(64))
    expected = float(((now - weight) @ x).norm() / (weight @ x).norm())
    assert found.errors["blocks.0.attention.k"] == pytest.approx(expected, rel=0.01)
