"""The journal of rollouts: what a killed process leaves is cut off, what is closed comes back exactly."""

from __future__ import annotations

import json

import pytest
import torch

from dacheng.align.reinforce.journal import Journal, LineJournal, PreparedSet
from dacheng.data.batches import IGNORED
from dacheng.data.rollouts import Rollout, aligned, collate
from dacheng.errors import DachengError, DamagedFile, Locked


def rollouts() -> list[Rollout]:
    return [
        Rollout("0.0", [1, 2, 3], [4, 5], [1, 1], [-0.1, -1 / 3], "ab", group="0", meta={"prompt": 0}),
        Rollout("0.1", [1, 2], [6, 7, 8, 9], [1, 0, 0, 1], [-2.0, 0.0, 0.0, -1e-30], "c\u4e2d", group="0"),
        Rollout("1.0", [5], [], [], [], "", group="1", finish_reason="length"),
    ]


def test_rollouts_come_back_exactly(tmp_path):
    journal = Journal(tmp_path)
    journal.write_rollouts(3, rollouts())
    journal.write_rollouts(4, rollouts()[:1])
    journal.close()
    again = Journal(tmp_path)
    assert again.read_rollouts(3) == rollouts() and again.read_rollouts(4) == rollouts()[:1]
    assert 3 in again.rollouts and 5 not in again.rollouts
    with pytest.raises(DachengError, match="already"):
        again.write_rollouts(3, rollouts())


def test_what_is_being_written_is_not_cut_off_by_a_second_start(tmp_path):
    journal = Journal(tmp_path)
    journal.write_rollouts(3, rollouts())
    with open(tmp_path / "rollouts.jsonl", "a") as file:
        file.write('{"set": 4, "id": "half of a set"}\n')
    before = (tmp_path / "rollouts.jsonl").read_bytes()
    with pytest.raises(Locked):
        Journal(tmp_path)
    assert (tmp_path / "rollouts.jsonl").read_bytes() == before
    journal.close()
    Journal(tmp_path).close()
    assert (tmp_path / "rollouts.jsonl").read_bytes() == before[: before.index(b'{"set": 4')]


@pytest.mark.parametrize("torn", [b"", b'{"set": 1, "id"', b'{"set": 1, "id": "x"}\n', b"\xff\xfe\n", b"[]\n", b"{}\n"])
def test_what_was_not_closed_is_cut_off_and_written_again(tmp_path, torn):
    path = tmp_path / "lines.jsonl"
    journal = LineJournal(path)
    journal.append(0, [{"a": 1.5}, {"a": float("nan")}])
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    again = LineJournal(path)
    assert path.read_bytes() == whole and again.read(0)[0]["a"] == 1.5
    again.append(1, [])
    assert 1 in LineJournal(path) and again.read(1) == []


def test_a_set_that_lost_lines_is_refused(tmp_path):
    path = tmp_path / "lines.jsonl"
    journal = LineJournal(path)
    journal.append(0, [{"a": 1}, {"a": 2}])
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(DamagedFile, match="1 lines of 2"):
        LineJournal(path)


def test_a_prepared_set_comes_back_to_the_bit(tmp_path):
    journal = Journal(tmp_path)
    batch = collate(rollouts(), pad_id=0)
    batch.reference_logps = torch.randn(batch.tokens.shape)
    saved = journal.save(PreparedSet(2, batch, {"reward": 1 / 3}, {"kl_coef": 0.1}))
    found = journal.load(2)
    assert found is not None and found.digest == saved.digest
    assert (found.figures, found.state) == ({"reward": 1 / 3}, {"kl_coef": 0.1})
    assert torch.equal(found.batch.tokens, batch.tokens) and found.batch.returns is None
    assert torch.equal(found.batch.reference_logps, batch.reference_logps)
    journal.thin_out(3)
    assert journal.load(2) is None
    (tmp_path / "sets" / "00000007.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DamagedFile):
        journal.load(7)


def test_a_batch_is_aligned_with_its_targets():
    batch = collate(rollouts(), pad_id=0)
    assert batch.tokens.tolist()[:2] == [[1, 2, 3, 4, 0], [1, 2, 6, 7, 8]]
    assert batch.targets.tolist()[:2] == [[IGNORED, IGNORED, 4, 5, IGNORED], [IGNORED, 6, IGNORED, IGNORED, 9]]
    assert batch.mask.sum(-1).tolist() == [2, 2, 0] and batch.tokens_in_loss == 4
    assert torch.equal(batch.old_logps, batch.sampler_logps)
    assert batch.old_logps[0].tolist() == pytest.approx([0, 0, -0.1, -1 / 3, 0])
    values = [[1.0, 2.0], [3.0, 4.0, 5.0, 6.0], []]
    assert aligned(rollouts(), values, 5).tolist() == [[0, 0, 1, 2, 0], [0, 3, 4, 5, 6], [0] * 5]
    assert batch.rows([0]).tokens.shape == (1, 4) and batch.rows([2]).tokens.shape == (1, 1)
    with pytest.raises(DachengError, match="needs a rollout"):
        collate([], 0)
    with pytest.raises(DachengError, match="one mask"):
        Rollout("x", [1], [2, 3], [1], [0.0], "")
    with pytest.raises(DachengError, match="no rollout"):
        Rollout.from_dict({"idd": 1})
    assert json.loads(json.dumps(rollouts()[0].to_dict()))["logps"] == rollouts()[0].logps
