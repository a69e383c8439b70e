import ast
import io
import json
import sys
from pathlib import Path

import pytest
from test_budget import machine
from train_toys import Recorder, make

import dacheng.train
from dacheng.errors import MissingExtra
from dacheng.train import Evaluate, Progress, TensorBoard
from dacheng.train.logs import JsonlFile
from dacheng.train.progress import _clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_where_there_is_no_terminal(tmp_path):
    out = io.StringIO()
    evaluation = Evaluate(lambda _model: {"loss": 1.25}, every=6)
    make(tmp_path, [Progress(out, every_s=0.0), evaluation], machine=machine(50.0)).fit()
    lines = out.getvalue().splitlines()
    assert lines[0] == "steps: 12"
    steps = [line for line in lines if line.startswith("step") and "tok/s" in line]
    assert len(steps) == 12
    for part in ("step 7/12", "loss ", "lr ", "tok/s", "MFU ", "left"):
        assert part in steps[6]
    assert "step 6/12  valid/loss 1.2500" in lines
    assert lines[-1].startswith("finished: 12 steps, 1,152 tokens in")


def test_few_lines_and_no_invented_mfu(tmp_path):
    out = io.StringIO()
    make(tmp_path, [Progress(out, every_s=1000.0)]).fit()
    steps = [line for line in out.getvalue().splitlines() if "tok/s" in line and line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/12", "12/12"]
    assert "MFU" not in out.getvalue()


def test_a_run_that_the_clock_ends_says_how_long_it_has(tmp_path):
    out = io.StringIO()
    make(tmp_path, [Progress(out, every_s=0.0)], steps=10**6, max_minutes=0.02).fit()
    lines = out.getvalue().splitlines()
    assert "1 s at most" in lines
    steps = [line for line in lines if line.startswith("step ")]
    assert steps and all("/" not in line.split()[1] for line in steps)
    assert {line.split()[-3] + line.split()[-2] for line in steps} <= {"0s", "1s"}


def test_a_bar_on_a_terminal(tmp_path):
    out = Terminal()
    make(tmp_path, [Progress(out)]).fit()
    assert "12/12" in out.getvalue() and "finished: 12 steps" in out.getvalue()


def test_a_resume_says_where_it_goes_on(tmp_path):
    make(tmp_path, steps=6, save_every=6).fit()
    out = io.StringIO()
    make(tmp_path, [Progress(out)], steps=9, allow_changes=("config.steps",)).fit()
    assert "going on from step 6" in out.getvalue()


def test_optional_libraries_are_imported_where_they_are_used():
    folder = Path(dacheng.train.__file__).parent
    found = set()
    for path in folder.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                found.update(name.split(".")[0] for name in names)
    assert "dacheng" in found and not found & {"rich", "tensorboard", "pyarrow", "matplotlib", "pydantic"}


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (187, "3:07"), (3765, "1:02:45"), (-1, "0 s")])
def test_clock(seconds, text):
    assert _clock(seconds) == text


def test_tensorboard_gets_losses_rates_and_evaluations(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make(tmp_path, [TensorBoard(every=2), Evaluate(lambda _model: {"loss": 1.5}, every=6)]).fit()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss", "grad_norm", "lr/matrix", "terms/penalty", "valid/loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8, 10, 12]
    assert [event.value for event in events.Scalars("valid/loss")] == [1.5, 1.5]


def test_tensorboard_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match="tensorboard") as caught:
        TensorBoard()
    assert "dacheng[logs]" in caught.value.remedy


def test_a_log_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 2, 3, 4)]
    path.write_text("".join(lines) + "not json\n" + '{"step": 1')  # a torn last line
    file = JsonlFile(path, done_steps=2)
    file.append({"step": 3, "text": "大", "bad": float("nan"), "worse": float("-inf")})
    file.close()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in kept] == [1, 2, 2, 3]
    assert kept[-1] == {"step": 3, "text": "大", "bad": "nan", "worse": "-inf"}
    assert list(tmp_path.iterdir()) == [path]


def test_an_intact_log_is_not_rewritten(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n')
    before = path.stat().st_ino
    JsonlFile(path, done_steps=1).close()
    assert path.stat().st_ino == before


def test_a_run_that_died_before_its_first_checkpoint_leaves_no_lines(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    make(tmp_path, [Recorder()], steps=3).fit()
    steps = [json.loads(line)["step"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
