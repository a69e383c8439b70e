"""Packed weights in memory: once, in the kernels' order, with the blocks left in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_gguf_writer import TOKENS, made

from dacheng.errors import DachengError
from dacheng.formats.gguf.writer import write_gguf
from dacheng.formats.loading import load_model
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.packed import Packed, PackedEmbedding
from dacheng.ops import native
from dacheng.ops.qtensor import QTensor


@pytest.fixture
def path(tmp_path):
    """A Llama: its queries and keys lie in another order in the file."""
    _, config, tensors = made("llama")
    write_gguf(tmp_path / "m.gguf", config, tensors, format="q8_0", tokenizer=TOKENS)
    return tmp_path / "m.gguf"


@torch.inference_mode()
def logits(model):
    ids = torch.arange(3, 30)
    return model.head(model(ids[None], torch.arange(27)[None], DenseCausal())[0])


def mapped(path: Path) -> tuple[list[range], int]:
    """Where this process has mapped a file, and how many of its bytes are in memory as seen from here."""
    places, resident, inside = [], 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            inside = line.endswith(str(path))
            if inside:
                begin, end = (int(number, 16) for number in first.split("-"))
                places.append(range(begin, end))
        elif inside and first == "Rss:":
            resident += 1024 * int(line.split()[1])
    return places, resident


def holders(model):
    return [module for module in model.modules() if isinstance(module, Packed | PackedEmbedding)]


def test_both_compute_the_same_and_hold_the_same_blocks(path):
    fast, small = (load_model(path, packed=True, weights_memory=how).model for how in ("fast", "small"))
    assert torch.equal(logits(fast), logits(small))
    one, other = fast.state_dict(), small.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    plain = load_model(path).model.state_dict()
    name = "blocks.1.attention.q"  # rearranged
    assert torch.equal(small.get_submodule(name).qtensor.dequantize(), plain[f"{name}.weight"])


def test_no_block_is_copied_out_of_the_file(path):
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")
    model = load_model(path, packed=True, weights_memory="small").model
    places, resident = mapped(path)
    for holder in holders(model):
        assert any(holder.packed.data_ptr() in place for place in places)
    # The file has 16 pages or so; a few are read again for norms and for the order of the queries.
    assert resident < path.stat().st_size / 4
    panels = sum(holder._panels[1].numel() for holder in holders(model) if holder._panels is not None)
    blocks = sum(holder.qtensor.nbytes for holder in holders(model) if isinstance(holder, Packed))
    assert panels == blocks


def test_what_is_loaded_over_a_rearranged_weight_takes_its_place(path):
    model = load_model(path, packed=True, weights_memory="small").model
    q = model.get_submodule("blocks.0.attention.q")
    assert q.order is not None
    other = QTensor.from_float(torch.randn(q.shape, generator=torch.Generator().manual_seed(1)), "Q8_0")
    for assign in (False, True):
        model.load_state_dict(model.state_dict() | {"blocks.0.attention.q.packed": other.data}, assign=assign)
        assert torch.equal(q.qtensor.dequantize(), other.dequantize()) and q.order is None
    again = load_model(path, packed=True).model  # the file is left alone
    assert not torch.equal(again.get_submodule("blocks.0.attention.q").qtensor.dequantize(), other.dequantize())


def test_another_choice_is_refused(path):
    with pytest.raises(DachengError, match="weights_memory"):
        load_model(path, packed=True, weights_memory="tiny")


def test_rows_in_an_order_of_their_own():
    whole = QTensor.from_float(torch.randn(6, 32, generator=torch.Generator().manual_seed(0)), "Q4_1")
    some = whole.select_rows(torch.tensor([4, 0, 2])).select_rows(torch.tensor([2, 1]))
    assert some.data is whole.data and some.nbytes == 2 * 20
    assert torch.equal(some.dequantize(), whole.dequantize()[[2, 0]])
    assert torch.equal(some.rows(torch.tensor([1])), whole.dequantize()[[0]])
    with pytest.raises(IndexError, match="0 to 1"):
        some.rows(torch.tensor([2]))
    with pytest.raises(DachengError):
        QTensor(whole.format, torch.Size((3, 32)), whole.data)
