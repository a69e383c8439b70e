"""Exit codes, errors, what goes to which stream, and what is not imported."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from dacheng import __version__
from dacheng.cli.console import PlainTask, amount, duration
from dacheng.cli.main import main
from dacheng.cli.verbs import VERBS

SUBVERBS = {"eval": ["run"], "data": ["run"], "tokenizer": ["train", "encode", "inspect"]}


def test_help_imports_nothing_heavy():
    lines = [[], ["--help"], ["--all"], ["--version"], ["nonsense"], ["run"]]
    for verb in VERBS:
        lines += [[verb, "--help"], *([verb, sub, "--help"] for sub in SUBVERBS.get(verb, []))]
    code = (
        "import sys; from dacheng.cli.main import main\n"
        f"codes = [main(words) for words in {lines!r}]\n"
        "heavy = ('torch', 'numpy', 'transformers', 'tokenizers', 'pyarrow', 'matplotlib', 'pydantic', 'jinja2')\n"
        "print(codes, [name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == f"{[0, 0, 0, 0, 2, 2] + [0] * (len(lines) - 6)} []"
    for verb in VERBS:
        assert f"Usage: dacheng {verb}" in done.stdout


def test_the_overview_leads_with_what_people_come_for(capsys):
    assert main([]) == 0
    first = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert (f"\n  {name} " in first) == verb.lead
    assert main(["--all"]) == 0
    everything = capsys.readouterr().out
    assert all(f"\n  {name} " in everything and verb.example in everything for name, verb in VERBS.items())
    assert main(["--help"]) == 0 and capsys.readouterr().out == first
    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "did you mean train?"),
        (["run"], "--recipe"),
        (["run", "life.yaml", "--nope"], "--nope"),
        (["run", "lief.yaml"], "did you mean life.yaml?"),
        (["run", "life.yaml", "first.wat=1"], "did you mean first.what?"),
        (["run", "life.yaml", "frist.what=1"], "did you mean first?"),
        (["run", "life.yaml", "first.seconds=soon"], "expected float"),
        (["run", "life.yaml", "first"], "section.key=value"),
        (["train", "life.yaml"], "dacheng run life.yaml"),
        (["eval", "rnu"], "run"),
        (["eval", "run", "--model", "m"], "--perplexity"),
        (["generate", "--model", "nothing", "--prompt", "x"], "no run has made a model yet"),
        (["generate", "--model", "http://localhost", "--prompt", "x"], "not supported yet"),
        (["generate", "--model", "m"], "--prompt TEXT"),
        (["generate", "--model", "m", "--prompt", "x", "--max-tokens", "many"], "many"),
        (["data", "run"], "name a recipe, or --source FILE"),
        (["history", "--limit", "x"], "x"),
    ],
)
def test_wrong_usage_is_exit_code_two_and_names_the_way_out(place, capsys, words, says):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and says in captured.err
    assert "Traceback" not in captured.err


def test_a_life_runs_and_says_where_everything_is_and_what_it_cost(place, capsys):
    assert main(["run", "life.yaml"]) == 0
    captured = capsys.readouterr()
    assert re.search(r"^first +run ", captured.err, re.M) and re.search(r"^second +run ", captured.err, re.M)
    assert "runs/toy/stages/second/done" in captured.out
    assert re.search(r"it cost .* wall \(measured\).*\((estimated|measured|mixed)\)", captured.out)
    assert main(["run", "life.yaml", "second.seconds=1"]) == 0
    captured = capsys.readouterr()
    assert re.search(r"^first +cached$", captured.err, re.M) and re.search(r"^second +run ", captured.err, re.M)


def test_json_is_all_there_is_on_stdout(place, capsys):
    assert main(["run", "life.yaml", "--json", "--out", "here"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [stage["status"] for stage in found["stages"]] == ["run", "run"]
    assert found["out"] == "here" and found["totals"]["entries"] == 2
    assert main(["history", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["name"], run["status"], run["exists"], run["metrics"]) == (
        "toy",
        "done",
        True,
        {"first.again": 0, "second.again": 0},
    )
    assert main(["run", "life.yaml", "second.what=fail", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "error": {"problem": "it failed", "field": "what", "value": "fail", "remedy": "set it to work"},
        "exit_code": 1,
    }
    assert main(["run", "life.yaml", "nonsense", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


@pytest.mark.parametrize(
    ("what", "says"),
    [("fail", "remedy: set it to work"), ("crash", "ZeroDivisionError: a bug"), ("full", "the disk is full")],
)
def test_failures_are_exit_code_one_without_traceback_and_say_how_to_go_on(place, capsys, what, says):
    words = ["run", "life.yaml", f"second.what={what}"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said
    assert f"go on with\n  dacheng run life.yaml second.what={what}" in said
    assert main([*words, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_history_shows_what_is_there_and_tolerates_what_is_gone(place, capsys):
    assert main(["history"]) == 0
    assert "nothing was run yet" in capsys.readouterr().out
    for out in ("a", "b", "b"):
        main(["run", "life.yaml", "--out", out])
    capsys.readouterr()
    (place / "a").rename(place / "moved")
    main(["history"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].split()[2:4] == ["done", "toy"] and lines[0].endswith("/b")
    assert "2 earlier or gone" in lines[1]
    main(["history", "--everything"])
    assert capsys.readouterr().out.count("(gone)") == 1
    main(["history", "another"])
    assert "nothing was run yet" in capsys.readouterr().out


def _listen_to_ctrl_c():
    """A shell that runs the tests in the background ignores SIGINT, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_state_that_the_printed_command_goes_on_from(place, dacheng, number):
    words = ["run", "life.yaml", "second.what=sleep", "--out", "an out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dacheng.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_listen_to_ctrl_c,
    )
    begun = place / "an out" / "stages" / "second" / "begun"
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert out == "" and "Traceback" not in err
    assert "interrupted" in err
    assert err.rstrip().endswith("go on with\n  dacheng run life.yaml second.what=sleep --out 'an out'")
    again = dacheng(*words)
    assert again.returncode == 0, again.stderr
    assert re.search(r"^first +cached$", again.stderr, re.M)
    assert json.loads((place / "an out/stages/second/artifact.json").read_text())["metrics"] == {"again": 1}


@pytest.mark.process
def test_two_runs_into_one_place_are_kept_apart(place, dacheng):
    words = ["run", "life.yaml", "second.what=sleep"]
    first = subprocess.Popen([sys.executable, "-m", "dacheng.cli", *words], stderr=subprocess.DEVNULL)
    try:
        begun = place / "runs/toy/stages/second/begun"
        deadline = time.monotonic() + 60
        while not begun.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        second = dacheng(*words)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 1
    assert f"is being written by process {first.pid}" in second.stderr
    assert dacheng(*words).returncode == 0  # kill -9 gave the lock back, and the life goes on


def test_amounts_and_durations_read_well():
    assert [amount(v) for v in (0, 12.34, 1234, 5.6e6, 7.8e9, 1e13)] == ["0", "12.3", "1.23k", "5.6M", "7.8G", "10T"]
    assert amount(1234, "B") == "1.23 kB" and amount(12, "tok") == "12 tok"
    assert [duration(v) for v in (0.44, 12.3, 200, 7500)] == ["0.4 s", "12 s", "3 min 20 s", "2 h 05 min"]


def test_progress_in_a_log_has_share_speed_and_time_left(capsys, monkeypatch):
    clock = iter([100.0, 101.0, 110.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    task = PlainTask("reading", 1000, "B")
    task.update(100)
    assert capsys.readouterr().err == ""  # nothing for what takes a second
    task.update(500, text="half")
    assert capsys.readouterr().err == "reading: 50% 50 B/s 10 s left half\n"
