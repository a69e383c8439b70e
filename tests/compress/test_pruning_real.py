"""On real weights and text: what the small form of the lab-note's figures can show in seconds."""

from __future__ import annotations

import pytest
import torch
from formats_of_tests import smollm2_path

from dacheng.compress.calibrate import Collector, check_want
from dacheng.compress.measure import read_text
from dacheng.compress.prune.choose import keep_layers
from dacheng.compress.prune.importance import block_influence
from dacheng.compress.prune.magnitude import magnitude
from dacheng.compress.prune.sparsegpt import sparsegpt
from dacheng.compress.prune.sparsity import Sparsity
from dacheng.compress.prune.wanda import wanda
from dacheng.data.batches import TokenBatch
from dacheng.formats.model_directory import load_model
from dacheng.nn.contexts import DenseCausal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded():
    return load_model(smollm2_path(), dtype="float32")


@pytest.fixture(scope="module")
def ids(loaded, shared_data):
    path = shared_data / "wikitext2" / "valid.txt.gz"
    if not path.is_file():
        pytest.skip("WikiText-2 is absent")
    return torch.tensor(loaded.tokenizer.encode(read_text(path)[:12_000])[:2048]).view(2, 1024)


@torch.no_grad()
def inputs_of(model, row, block):
    """The block's statistics on one row, and its own inputs by map."""
    row = row[None]
    stream = model.begin(row, torch.arange(row.shape[1])[None], DenseCausal())
    x = stream.x0
    for i in range(block):
        x = model.advance(i, x, stream)
    maps = {name: m for name, m in model.blocks[block].named_modules() if name.endswith(("q", "o", "up", "down"))}
    seen = {}
    hooks = [m.register_forward_pre_hook(lambda _, x, n=n: seen.__setitem__(n, x[0][0])) for n, m in maps.items()]
    with Collector(maps, check_want({"hessian", "sqnorm"})) as collector:
        model.advance(block, x, stream)
    for hook in hooks:
        hook.remove()
    return maps, collector.stats(), seen


@pytest.mark.parametrize("block", [1, 4])
def test_half_the_weights_of_a_real_block(loaded, ids, block):
    """Calibrated on one text, judged on another: what a map's output loses with half of its weights."""
    maps, stats, _ = inputs_of(loaded.model, ids[0], block)
    _, _, held_out = inputs_of(loaded.model, ids[1], block)
    lost = dict.fromkeys(("magnitude", "wanda", "sparsegpt"), 0.0)
    for name, module in maps.items():
        weight, x = module.weight.detach(), held_out[name]
        half, s = Sparsity(0.5), stats[name]
        pruned = {
            "magnitude": weight * magnitude(weight, half),
            "wanda": weight * wanda(weight, s.sqnorm, half),
            "sparsegpt": sparsegpt(weight, s.hessian, half).weight,
        }
        for method, found in pruned.items():
            lost[method] += float(((weight - found) @ x.T).norm() / (weight @ x.T).norm()) / len(maps)
    assert lost["wanda"] < 0.85 * lost["magnitude"] and lost["sparsegpt"] < 0.85 * lost["magnitude"], lost


def test_the_ends_of_a_real_model_matter(loaded, ids):
    row = ids[:1, :257]
    batch = TokenBatch(row[:, :-1], row[:, 1:], torch.arange(256)[None])
    influence = block_influence(loaded.model, [batch])
    keep = keep_layers(influence, 7)
    assert {0, 1, 29} <= set(keep.layers) and influence[0] > 5 * influence.median()
