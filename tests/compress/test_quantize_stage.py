"""The stage, its layouts and the command: what comes out loads elsewhere, and says what it cost."""

from __future__ import annotations

import json

import pytest
import torch
from compress_toys import some_text, toy_batches, toy_decoder, toy_directory

from dacheng.cli.main import main
from dacheng.compress.judge import Comparison, Measured
from dacheng.compress.pareto import Variant, front, plot, table
from dacheng.compress.quantize.config import QuantizeConfig
from dacheng.compress.quantize.model import quantize_model
from dacheng.compress.quantize.sensitivity import allocate, sensitivities
from dacheng.errors import DachengError, UsageError
from dacheng.formats.export import export_packed_gguf
from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.json_files import read_json, write_json
from dacheng.formats.model_directory import load_model, save_model
from dacheng.formats.shards import read_weights
from dacheng.nn.packed import Packed
from dacheng.ops.integers import QSpec
from dacheng.stages.quantize import Config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    toy_directory(folder / "model")
    (folder / "text.txt").write_text(some_text())
    return folder


@torch.no_grad()
def logits(model) -> torch.Tensor:
    from dacheng.nn.contexts import DenseCausal

    tokens = toy_batches()[0]
    return model.head(model(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), DenseCausal()))


def test_the_command_and_what_it_leaves(folder, capsys):
    command = ["compress", "quantize", str(folder / "model"), "--out", str(folder / "out"), "--calibration",
               str(folder / "text.txt"), "--rows", "8", "--length", "32", "--no-judge", "--json"]  # fmt: skip
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    metrics = told["stages"][-1]["artifact"]["metrics"]
    assert (
        metrics["method"] == "gptq"
        and metrics["spec"] == "int4g64"
        and metrics["formats"] == {"int4g64": 14, "int8g32": 1}
    )
    directory = told["stages"][-1]["artifact"]["path"]
    packed = load_model(directory, packed=True, dtype="float32").model
    assert sum(isinstance(module, Packed) for module in packed.modules()) == 14
    assert main([*command[:3], "--out", str(folder / "again"), *command[5:]]) == 0  # the same command again
    capsys.readouterr()
    assert (
        main(["compress", "quantize", directory, "--out", str(folder / "twice"), "--no-judge", "--method", "rtn"]) == 2
    )
    assert "compressed already" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value", "field"), [
    ("--bits", "99", "bits"), ("--group", "²", "group"), ("--group", "0", "group"), ("--embedding", "9", "bits"),
    ("--text", "nowhere.txt", "text"),
])  # fmt: skip
def test_what_can_not_be_is_refused_before_a_model_is_read(folder, capsys, monkeypatch, option, value, field):
    from dacheng.stages import compressing

    monkeypatch.setattr(compressing, "open_model", None)
    out = folder / f"refused-{option}-{value}"
    assert main(["compress", "quantize", str(folder / "model"), "--out", str(out), option, value]) == 2
    assert field in capsys.readouterr().err


def test_stopped_while_judging_it_is_not_made_again(folder, capsys, monkeypatch):
    from dacheng.compress import judge
    from dacheng.compress.quantize import model

    command = ["compress", "quantize", str(folder / "model"), "--out", str(folder / "stopped"), "--calibration",
               str(folder / "text.txt"), "--rows", "8", "--length", "32"]  # fmt: skip

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    def again(*args, **kwargs):
        raise AssertionError("quantised a second time")

    with monkeypatch.context() as patch:
        patch.setattr(model, "quantize_model", again)
        assert main([*command, "--text", str(folder / "nowhere.txt")]) == 2  # refused before minutes of work
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(judge, "judge", stop)
        assert main(command) == 130
    assert "is kept; go on with" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(model, "quantize_model", again)
        patch.setattr(judge, "judge", lambda *args, **kwargs: Comparison(Measured("a", 2), Measured("b", 1)))
        assert main(command) == 0
    assert "made already" in capsys.readouterr().err
    stage = folder / "stopped" / "stages" / "quantize"
    left = {path.name for path in stage.iterdir()}
    assert {"model", "quantize.json"} <= left and not {"made.json", "state"} & left
    assert read_json(stage / "quantize.json")["comparison"]["sentence"].startswith("Worth it")


@pytest.mark.parametrize("text", ["8", "4", "4g32a", "3g64"])
def test_a_gguf_file_holds_the_very_codes(text, tmp_path):
    loaded = load_model(toy_directory(tmp_path / "model"), dtype="float32")
    found = quantize_model(loaded.model, QuantizeConfig("gptq", QSpec.parse(text), QSpec(8, 32)), toy_batches())
    export_packed_gguf(loaded.model, None, found.weights, tmp_path / "m.gguf")
    again = load_model(tmp_path / "m.gguf", dtype="float32").model
    assert float((logits(again) - logits(loaded.model)).norm() / logits(loaded.model).norm()) < 5e-3
    if text == "4":
        assert torch.equal(again.blocks[1].attention.q.weight, loaded.model.blocks[1].attention.q.weight)
        formats = {entry.format.name for entry in GGUFFile(tmp_path / "m.gguf").tensors.values()}
        assert formats == {"F32", "Q4_0", "Q8_0"}


def test_what_gguf_has_no_blocks_for(tmp_path):
    loaded = load_model(toy_directory(tmp_path / "model"), dtype="float32")
    found = quantize_model(loaded.model, QuantizeConfig("rtn", QSpec(8, 64, False)))
    with pytest.raises(DachengError, match="no kernel"):
        export_packed_gguf(loaded.model, None, found.weights, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("text", ["4", "8g32", "4g64a"])
def test_compressed_tensors_come_back(text, tmp_path):
    loaded = load_model(toy_directory(tmp_path / "model"), dtype="float32")
    found = quantize_model(loaded.model, QuantizeConfig("rtn", QSpec.parse(text)))
    directory = save_model(
        tmp_path / "ct", loaded.model, loaded.tokenizer, packed=found.weights, layout="compressed-tensors"
    )
    assert torch.equal(logits(load_model(directory, dtype="float32").model), logits(loaded.model))
    config = read_json(directory / "config.json")["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["symmetric"] is not text.endswith("a")
    for change in ({"format": "dense"}, {"config_groups": {}}):
        write_json(
            directory / "config.json", read_json(directory / "config.json") | {"quantization_config": config | change}
        )
        with pytest.raises(DachengError):
            load_model(directory)


def test_what_compressed_tensors_have_no_word_for(tmp_path):
    model = toy_decoder()
    for config in (
        QuantizeConfig("rtn", QSpec(3)),
        QuantizeConfig("rtn", QSpec(4), QSpec(8, 32)),
        QuantizeConfig("nf4"),
    ):
        found = quantize_model(toy_decoder(), config)
        with pytest.raises(DachengError, match="integers of one kind"):
            save_model(tmp_path / "ct", model, packed=found.weights, layout="compressed-tensors")


@pytest.mark.peer
@pytest.mark.parametrize("text", ["4", "8g32"])
def test_transformers_reads_compressed_tensors(text, tmp_path):
    transformers, _ = pytest.importorskip("transformers"), pytest.importorskip("compressed_tensors")
    loaded = load_model(toy_directory(tmp_path / "model"), dtype="float32")
    found = quantize_model(loaded.model, QuantizeConfig("rtn", QSpec.parse(text)))
    save_model(tmp_path / "ct", loaded.model, loaded.tokenizer, packed=found.weights, layout="compressed-tensors")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ct", dtype=torch.float32)
    with torch.no_grad():
        theirs = peer(toy_batches()[0]).logits
    torch.testing.assert_close(theirs, logits(loaded.model), rtol=1e-3, atol=1e-3)


@pytest.mark.peer
@pytest.mark.parametrize("text", ["4", "8g32", "4g64a"])
def test_their_own_code_unpacks_it(text, tmp_path):
    """With a zero point too, which transformers can't load: compressed-tensors 0.20 packs zero points to write them and
    asks for unpacked ones when it makes room for them."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    model = toy_decoder()
    found = quantize_model(model, QuantizeConfig("rtn", QSpec.parse(text)))
    directory = save_model(tmp_path / "ct", model, packed=found.weights, layout="compressed-tensors")
    config = read_json(directory / "config.json")["quantization_config"]["config_groups"]["group_0"]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**config["weights"]))
    name = "model.layers.1.mlp.down_proj."
    parts = {key.removeprefix(name): value for key, value in read_weights(directory).items() if key.startswith(name)}
    parts["weight_scale"] = parts["weight_scale"].float()
    theirs = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
    torch.testing.assert_close(theirs, model.blocks[1].mlp.down.weight.detach())


# --- bits under a budget ----------------------------------------------------------------------------------------------
def test_bits_go_where_the_loss_feels_them():
    model, text = toy_decoder(), toy_batches()
    options = [QSpec(bits) for bits in (2, 3, 4, 8)]
    found = sensitivities(model, QuantizeConfig("rtn"), options, text)
    assert len(found) == 14 and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(one[options[0]][1] > one[options[2]][1] > one[options[3]][1] for one in found.values())
    even = sum(one[options[2]][0] for one in found.values())
    chosen = allocate(found, even)
    spent = sum(found[name][spec][0] for name, spec in chosen.items())
    assert spent <= even and len(set(chosen.values())) > 1
    expected = sum(found[name][spec][1] for name, spec in chosen.items())
    assert expected < sum(one[options[2]][1] for one in found.values())
    with pytest.raises(UsageError, match="below the smallest") as refusal:
        allocate(found, 10)
    assert "at least" in refusal.value.remedy
    assert set(allocate(found, 10**9).values()) == {options[3]}


def test_a_mixture_beats_even_bits_of_the_same_bytes():
    """On the model's outputs, not on the estimate that chose it."""
    text, reference = toy_batches(rows=16), logits(toy_decoder())
    found = sensitivities(toy_decoder(), QuantizeConfig("rtn"), [QSpec(bits) for bits in (2, 3, 4, 5, 6)], text)
    even = sum(one[QSpec(4)][0] for one in found.values())
    error = {}
    for name, specs in (("even", ()), ("mixed", tuple(allocate(found, even).items()))):
        model = toy_decoder()
        quantize_model(model, QuantizeConfig("rtn", QSpec(4), specs=specs))
        error[name] = float((logits(model) - reference).norm())
    assert error["mixed"] < error["even"]


@pytest.mark.parametrize(
    ("values", "field"),
    [({"layout": "compressed-tensors"}, "embedding"), ({"method": "nf4", "layout": "gguf"}, "layout"),
     ({"method": "nf4", "budget_mb": 3.0}, "budget_mb")],
)  # fmt: skip
def test_what_contradicts_itself(values, field):
    with pytest.raises(UsageError) as refusal:
        Config(**values)
    assert refusal.value.field == field


# --- a sweep ----------------------------------------------------------------------------------------------------------
@pytest.mark.process
def test_a_sweep_draws_the_front(folder, capsys):
    command = ["compress", "sweep", str(folder / "model"), "rtn:8", "rtn:3", "--out", str(folder / "sweep"), "--text",
               str(folder / "text.txt"), "--tokens", "300", "--no-speed", "--json"]  # fmt: skip
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)["variants"]
    assert [one["name"] for one in found] == ["rtn-8", "rtn-3"] and found[0]["disk_bytes"] > found[1]["disk_bytes"]
    assert read_json(folder / "sweep" / "sweep.json")["variants"] == found
    assert main(["compress", "sweep", str(folder / "model"), "nf4:4", "--out", str(folder / "sweep2")]) == 2


def test_the_front_is_what_nothing_beats(tmp_path):
    def point(name: str, size: int, value: float) -> Variant:
        return Variant(name, size, value, value - 1, value + 1, None)

    points = [point("a", 10, 30.0), point("b", 20, 20.0), point("c", 25, 20.0), point("d", 15, 40.0)]
    assert front(points) == ["a", "b"]
    assert [line[0] for line in table(points).splitlines()[1:5]] == ["*", " ", "*", " "]
    if plot(points, tmp_path / "p.svg"):
        assert "<svg" in (tmp_path / "p.svg").read_text()
    with pytest.raises(DachengError, match="without a text"):
        Variant.of("x", {"after": {"disk_bytes": 3}})
