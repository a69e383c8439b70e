"""Two real processes over gloo: gradients summed, one checkpoint, one decision."""

import json
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from train_toys import (
    Recorder,
    ToyModel,
    ToyObjective,
    ToySource,
    assert_same_bits,
    config,
    everything,
    make,
    processes,
)

from dacheng.errors import DachengError, Locked
from dacheng.objectives.base import StepContext
from dacheng.train import Callback, CheckpointStore, Phase, Trainer, collectives, gradients
from dacheng.train.lock import OutputLock
from dacheng.train.precision import Precision

FP32 = Precision("fp32", torch.device("cpu"))


def gradient(source: ToySource):
    model = ToyModel(dropout=0.0).eval()
    totals = gradients.accumulate(model, ToyObjective(), source.next(0), StepContext(), FP32, list(model.parameters()))
    return vars(totals), {name: p.grad.clone() for name, p in model.named_parameters()}


def sgd_trainer(out: Path, source: ToySource, callbacks=(), **changes) -> Trainer:
    """SGD: Adam would hide a sum that should have been an average."""
    phase = Phase(ToyObjective(), optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.3, momentum=0.9))
    return Trainer(ToyModel(dropout=0.0), [phase], source, list(callbacks), config(**changes), out)


class _StopOnFirst(Callback):
    def on_step_end(self, trainer, report):
        if report.step == 5:
            trainer.stop("enough")


# Every case runs on each rank and returns plain data or tensors; rank 0's comes back to the test.
def sum_of_gradients(rank, world, out):
    return gradient(ToySource(2, rank=rank, world=world))


def partial_gradients(rank, world, out):
    """A parameter that only one rank used, one that none did, and two dtypes."""
    parameters = [torch.nn.Parameter(torch.zeros(3, dtype=d)) for d in (torch.float32, torch.float64, torch.float32)]
    parameters[0].grad = torch.full((3,), 1.0 + rank)
    if rank == 1:
        parameters[1].grad = torch.full((3,), 7.0, dtype=torch.float64)
    collectives.BUCKET_BYTES = 8
    collectives.sum_gradients(parameters)
    return [None if p.grad is None else p.grad.tolist() for p in parameters]


def gathering(rank, world, out):
    return collectives.gather({"rank": rank, "text": "大" * rank, "value": 0.1 + rank}), collectives.from_first(rank)


def whole_run(rank, world, out):
    trainer = sgd_trainer(out / "two", ToySource(2, rank=rank, world=world), steps=6, save_every=3)
    result = trainer.fit()
    return everything(trainer), result.loss, result.tokens


def one_rank_stops(rank, world, out):
    source = ToySource(1, rank=rank, world=world)
    return sgd_trainer(out / "stop", source, [_StopOnFirst()], steps=9).fit().stopped


def disk_full_on_rank_0(rank, world, out):
    trainer = sgd_trainer(out / "full", ToySource(1, rank=rank, world=world), steps=4, save_every=2)

    def fail(*arguments):
        raise DachengError("no space left")

    trainer.store.save = fail
    try:
        trainer.fit()
    except DachengError as error:
        return collectives.gather(error.problem)


def locked_elsewhere(rank, world, out):
    lock = OutputLock(out / "locked")
    if rank == 0:
        lock.__enter__()
    try:
        sgd_trainer(out / "locked", ToySource(1, rank=rank, world=world)).fit()
    except DachengError as error:
        problem = collectives.gather([isinstance(error, Locked), error.problem])
        lock.__exit__(None, None, None)
        return problem


CASES = [
    sum_of_gradients,
    partial_gradients,
    gathering,
    whole_run,
    one_rank_stops,
    disk_full_on_rank_0,
    locked_elsewhere,
]


def worker(rank: int, world: int, out: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(out / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    results = {}
    try:
        for case in CASES:
            results[case.__name__] = case(rank, world, out)
        torch.save(results, out / f"rank{rank}.pt")
    except BaseException:
        (out / f"failure{rank}").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """All cases in one pair of processes: starting torch costs more than running them."""
    out = tmp_path_factory.mktemp("ranks")
    processes()
    mp.start_processes(worker, args=(2, out), nprocs=2, start_method="forkserver")
    return out, [torch.load(out / f"rank{rank}.pt") for rank in range(2)]


pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_gradients_of_two_ranks_equal_those_of_one_process(two_ranks):
    _, ranks = two_ranks
    totals, reference = gradient(ToySource(4))
    scale = max(float(g.abs().max()) for g in reference.values())
    for theirs, grads in (rank["sum_of_gradients"] for rank in ranks):
        assert max(float((grads[name] - reference[name]).abs().max()) for name in reference) / scale < 1e-6
        assert theirs["loss"] == pytest.approx(totals["loss"], rel=1e-6) and theirs["counts"] == totals["counts"]
        assert theirs["metrics"] == pytest.approx(totals["metrics"])


def test_parameters_that_some_ranks_did_not_use(two_ranks):
    for rank in two_ranks[1]:
        assert rank["partial_gradients"] == [[3.0] * 3, [7.0] * 3, None]


def test_gather(two_ranks):
    expected = [{"rank": 0, "text": "", "value": 0.1}, {"rank": 1, "text": "大", "value": 1.1}]
    for rank in two_ranks[1]:
        assert rank["gathering"] == (expected, 0)


def test_a_run_of_two_ranks_is_that_of_one(two_ranks, tmp_path):
    _, ranks = two_ranks
    trainer = sgd_trainer(tmp_path, ToySource(4), steps=6, save_every=3)
    result = trainer.fit()
    tensors, loss, tokens = ranks[0]["whole_run"]
    assert tokens == result.tokens == 6 * 96 and loss == pytest.approx(result.loss, rel=1e-5)
    for name, value in everything(trainer).items():
        if name.startswith("model") and "mean" not in name:  # the running mean is a rank's own
            torch.testing.assert_close(tensors[name], value, atol=1e-6, rtol=1e-5)
    weights = [{name: t for name, t in rank["whole_run"][0].items() if "weight" in name} for rank in ranks]
    assert_same_bits(*weights)


def test_rank_0_alone_writes(two_ranks):
    out, _ = two_ranks
    assert CheckpointStore(out / "two").steps() == [3, 6]
    lines = [json.loads(line) for line in (out / "two" / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    checkpoint, _ = CheckpointStore(out / "two").latest()
    streams = {name.split("/")[1] for name in checkpoint.optimizer_tensors() if name.startswith("rng/")}
    assert streams == {"0", "1"} and len(checkpoint.state["sources"]) == 2


def test_a_checkpoint_of_two_ranks_goes_on_with_one(two_ranks):
    """World size may change: named, and the weights are those of a run that had one rank all along."""
    out, _ = two_ranks
    resumed = sgd_trainer(out / "two", ToySource(4), steps=9, allow_changes=("config.steps",))
    result = resumed.fit()
    assert result.resumed_from == 6
    assert any("world_size was 2, is 1" in warning for warning in result.warnings)
    # The schedule depends on the steps: compare with a run of one rank that changed them at the same place.
    whole = sgd_trainer(out / "one", ToySource(4), steps=6, save_every=6)
    whole.fit()
    whole = sgd_trainer(out / "one", ToySource(4), steps=9, allow_changes=("config.steps",))
    whole.fit()
    for p, q in zip(whole.model.parameters(), resumed.model.parameters()):
        torch.testing.assert_close(p, q, atol=2e-6, rtol=1e-5)


def test_all_ranks_stop_and_fail_together(two_ranks):
    for rank in two_ranks[1]:
        assert rank["one_rank_stops"] == "enough"
        assert rank["disk_full_on_rank_0"] == ["no space left", "rank 0 gave up: no space left"]
        (locked, problem), (_, told) = rank["locked_elsewhere"]
        assert locked and "is being written by process" in problem and problem in told


def test_a_single_process_needs_no_group(tmp_path):
    assert collectives.world_size() == 1 and collectives.gather({"x": object}) == [{"x": object}]
    assert make(tmp_path, [Recorder()], steps=1).fit().steps == 1
