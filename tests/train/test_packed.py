"""The trainer with the real model, objective and packed shards."""

import numpy as np
import pytest
import torch
from train_toys import Recorder, assert_same_bits, everything

from dacheng.data.batches import PackedSource
from dacheng.data.packing import pack
from dacheng.data.shards import ShardWriter, TokenShards
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.objectives.next_token import NextToken
from dacheng.train import OptimizerConfig, Phase, TrainConfig, Trainer

VOCAB, CONTEXT = 50, 24


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Documents of 3 to 60 tokens that count in their own stride: several to a row, some cut."""
    writer = ShardWriter(tmp_path_factory.mktemp("shards") / "train", np.uint16)
    generator = np.random.default_rng(0)
    for _ in range(60):
        start, stride, length = generator.integers(0, VOCAB), generator.integers(1, 4), generator.integers(3, 60)
        writer.add([int((start + stride * i) % VOCAB) for i in range(length)])
    writer.finish()
    shards = TokenShards.open([writer.prefix])
    return shards, pack(shards, CONTEXT)


def trainer(packed, out, micro_batches=2, callbacks=(), sgd=True, **changes):
    traits = DecoderTraits(
        vocab_size=VOCAB, width=32, layers=2, heads=2, max_positions=CONTEXT, qk_norm=True, value_embeddings=True,
        residual_scalars=True, tied_head=False, logit_soft_cap=15.0,
    )  # fmt: skip
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(0))
    plain = Phase(NextToken(), optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.5))
    values = {"steps": 8, "precision": "fp32", "save_every": 3, "clip_norm": None, **changes}
    source = PackedSource(*packed, batch_rows=8, micro_batches=micro_batches, seed=5)
    phases = [plain if sgd else Phase(NextToken())]
    return Trainer(model, phases, source, callbacks, TrainConfig(**values), out)


def test_division_into_micro_batches_does_not_matter(packed, tmp_path):
    one, eight = trainer(packed, tmp_path / "a", 1), trainer(packed, tmp_path / "b", 8)
    one.fit(), eight.fit()
    for (name, p), q in zip(one.model.named_parameters(), eight.model.parameters()):
        torch.testing.assert_close(p, q, atol=2e-6, rtol=1e-5, msg=name)


class _Stop(Exception):
    pass


def _crash(_trainer):
    raise _Stop


def test_a_resume_reads_the_same_rows_in_any_division(packed, tmp_path):
    whole = trainer(packed, tmp_path / "a")
    whole.fit()
    for out in ("same", "other"):
        with pytest.raises(_Stop):
            trainer(packed, tmp_path / out, callbacks=[Recorder(at={5: _crash})]).fit()
    same, other = trainer(packed, tmp_path / "same"), trainer(packed, tmp_path / "other", micro_batches=4)
    assert same.fit().resumed_from == other.fit().resumed_from == 3
    assert_same_bits(everything(whole), everything(same))
    for p, q in zip(whole.model.parameters(), other.model.parameters()):
        torch.testing.assert_close(p, q, atol=2e-6, rtol=1e-5)


def test_muon_learns_the_strides(packed, tmp_path):
    """Each document has one of three strides, known from its second token on: far below ln 50 = 3.9 nats."""
    optimizer = OptimizerConfig(kind="muon", lr=0.01, matrix_lr=0.02, weight_decay=0.0)
    seen = Recorder()
    settings = {"steps": 60, "save_every": 60, "clip_norm": 1.0, "optimizer": optimizer}
    result = trainer(packed, tmp_path, 1, [seen], sgd=False, **settings).fit()
    assert seen.losses[0] == pytest.approx(np.log(VOCAB), abs=0.4)
    assert sum(seen.losses[-5:]) / 5 < 1.6
    assert result.tokens == 60 * 8 * CONTEXT and result.flops > 0
