"""A whole run with its real parts: small documents, a model of random weights, a trainer in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from adapting_fakes import save_tiny, write_documents

from dacheng.errors import DachengError
from dacheng.stages.adapting.events import read_events
from dacheng.stages.adapting.kitchen import Kitchen
from dacheng.stages.adapting.model_room import ModelRoom
from dacheng.stages.adapting.run import Recipe, Run
from dacheng.stages.adapting.state import replay

pytestmark = [pytest.mark.process, pytest.mark.slow]
TRAIN = {"row_tokens": 512, "batch_tokens": 512, "save_every": 3, "snapshot_every": 3, "rank": 2}


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents") / "docs")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def test_a_run_with_its_real_parts(tmp_path, documents, tiny):
    out = tmp_path / "out"
    room = ModelRoom(tiny)
    parts = Kitchen(str(documents), out, room, train={**TRAIN, "steps": 8, "seconds": None})
    try:
        with Run(Recipe(str(documents), str(tiny), 0.1), out, parts) as run:
            result = run.carry_out()
            quoted = run.ask("What does copy_target return?", "quote")
            adapted = run.ask("What does copy_target return?", "adapted")
            missing = run.ask("Who was the third emperor of Bulgaria, and whom did he marry?", "quote")
            state = run.state()
    finally:
        parts.close()
    assert sorted(state.losses) == list(range(1, 9)) and state.reading["drops"]["dropped"]
    assert set(result["rows"]) >= {"bare", "sources", "adapted", "quote"}
    assert quoted["citations"][0]["source"] == "copy.md" and "copy" in quoted["text"]
    assert (
        adapted["mode"] == "adapted"
        and missing["abstained"]
        and (out / "adapter" / "adapter_model.safetensors").exists()
    )
    examples = [json.loads(line) for line in (out / "training" / "examples.jsonl").read_text().splitlines()]
    assert all(example["messages"][-1]["role"] == "assistant" for example in examples)


PROGRAM = """
import sys
from dacheng.stages.adapting.kitchen import Kitchen
from dacheng.stages.adapting.model_room import ModelRoom
from dacheng.stages.adapting.run import Recipe, Run
from pathlib import Path
source, model, out = sys.argv[1:4]
train = {"row_tokens": 512, "batch_tokens": 512, "save_every": 3, "snapshot_every": 3, "rank": 2}
train |= {"steps": 40, "seconds": None}
parts = Kitchen(source, Path(out), ModelRoom(Path(model)), train=train)
with Run(Recipe(source, model, 0.1), Path(out), parts) as run:
    run.carry_out()
"""


def test_a_run_that_is_killed_while_it_trains_goes_on_bit_identically(tmp_path, documents, tiny):
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, str(documents), str(tiny), str(out)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 90
    while len(replay(read_events(out / "events.jsonl")[0]).losses) < 8:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert subprocess.run(command, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0
    state = replay(read_events(out / "events.jsonl")[0])
    assert sorted(state.losses) == list(range(1, 41)) and state.starts == 2 and state.stage == "ready"
    assert state.plugs[-1].identical is not False and state.plugs[-1].from_step % 3 == 0
    for row in ("bare", "sources", "adapted", "quote"):
        ids = [json.loads(line)["id"] for line in (out / "exam" / f"{row}.jsonl").read_text().splitlines()]
        assert len(ids) == len(set(ids)) == state.plan["exam_questions"]


def test_documents_that_cannot_be_asked_about_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DachengError, match="nothing to ask about"):
        Kitchen(str(tmp_path / "empty"), tmp_path / "out").read(lambda values: None)


def test_one_sentence_is_quoted(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("Mount Fuji is 3776 metres high.")
    kitchen = Kitchen(str(tmp_path / "one"), tmp_path / "out")
    kitchen.open_or_read()
    shown = kitchen.show(kitchen.answer("How high is Mount Fuji?", "quote"))
    assert "3776" in shown["text"] and not shown["abstained"]
    kitchen.close()


def test_a_model_without_a_chat_template_is_named(tmp_path, tiny):
    import shutil

    plain = shutil.copytree(tiny, tmp_path / "plain")
    config = json.loads((plain / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(config))
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(DachengError, match="cannot chat"):
        ModelRoom(plain)


def test_chinese_documents_and_an_english_model(tmp_path, tiny):
    (tmp_path / "zh").mkdir()
    (tmp_path / "zh" / "山.md").write_text(
        "# 富士山\n\n富士山是日本最高的山，高三千七百七十六米。\n\n# 泰山\n\n泰山在山东省，高一千五百三十二米。\n"
    )
    room = ModelRoom(tiny)
    kitchen = Kitchen(str(tmp_path / "zh"), tmp_path / "out", room)
    try:
        kitchen.open_or_read()
        assert not kitchen.writes and not kitchen.trains
        assert any("cannot write Chinese" in note for note in kitchen.notes)
        assert "三千七百七十六" in kitchen.show(kitchen.answer("富士山有多高？", "quote"))["text"]
    finally:
        kitchen.close()
