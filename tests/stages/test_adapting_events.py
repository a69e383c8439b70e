"""The journal of a run: torn lines, followers, and that any beginning of one can be replayed."""

from __future__ import annotations

import json
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.stages.adapting.events import Event, Journal, follow, read_events
from dacheng.stages.adapting.state import _HANDLERS, STAGES, replay

LIFE = [
    ("started", {"source": "docs", "model": "tiny", "minutes": 6, "seed": 0}),
    ("reading", {"files": 3, "passages": 9, "bytes": 100, "drops": {}, "seconds": 0.1, "done": True}),
    ("questions", {"train": 5, "calibration": 2, "exam": 2, "hand": 0}),
    ("probe", {"step": 0, "mode": "bare", "question": "what?", "answer": "a", "citations": []}),
    ("gate", {"threshold": 0.5, "auroc": 0.9, "split_sizes": {}}),
    ("plan", {"steps": 4, "train_seconds": 10, "exam_questions": 2}),
    ("train_step", {"step": 1, "steps": 4, "loss": 2.5}),
    ("train_step", {"step": 2, "steps": 4, "loss": 1.5}),
    ("plug_pulled", {"step": 2}),
    ("train_step", {"step": 2, "steps": 4, "loss": 1.5}),
    ("restarted", {"from_step": 1, "bit_identical": True, "compared_steps": 1}),
    ("exam_progress", {"row": "quote", "done": 1, "total": 2}),
    ("exam_row", {"row": "quote", "scores": {"right": [0.5, 0.0, 1.0]}, "seconds": 1, "joules": 60, "money": 0.1}),
    ("verdict", {"winner": "quote", "sentences": ["Quoting won."]}),
    ("ready", {"url": None}),
]


def written(path, life=LIFE):
    with Journal(path) as journal:
        return [journal.write(kind, **values) for kind, values in life]


def test_what_is_written_is_read_and_replayed(tmp_path):
    path = tmp_path / "events.jsonl"
    events = written(path)
    assert read_events(path) == (events, 0) and [e.n for e in events] == list(range(1, len(LIFE) + 1))
    state = replay(events)
    assert state.stage == "ready" and state.losses == {1: 2.5, 2: 1.5}
    assert state.plugs[0].identical is True and state.plugs[0].from_step == 1
    assert state.rows["quote"].scores["right"] == [0.5, 0.0, 1.0] and state.verdict["winner"] == "quote"


def test_a_torn_line_is_waited_for_and_then_passed_over(tmp_path):
    path = tmp_path / "events.jsonl"
    written(path, LIFE[:2])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 3, "time": "2026')
    assert [e.n for e in read_events(path)[0]] == [1, 2] and read_events(path)[1] == 0
    with Journal(path) as journal:
        assert journal.write("resumed").n == 3
    events, torn = read_events(path)
    assert [e.kind for e in events] == ["started", "reading", "resumed"] and torn == 1
    assert path.read_bytes().startswith(whole)  # nothing is ever taken back


def test_values_that_json_cannot_hold_become_texts(tmp_path):
    with Journal(tmp_path / "e") as journal:
        journal.write("train_step", step=1, loss=float("nan"), lone="\ud800")
    line = (tmp_path / "e").read_bytes()
    assert json.loads(line)["loss"] == "nan" and replay(read_events(tmp_path / "e")[0]).losses[1] != 0


def test_a_follower_sees_what_comes_later_from_where_it_was(tmp_path):
    path = tmp_path / "events.jsonl"
    done = threading.Event()
    seen: list[int] = []
    thread = threading.Thread(
        target=lambda: seen.extend(e.n for e in follow(path, 2, stopped=done.is_set, poll_s=0.01))
    )
    thread.start()
    written(path)
    done.set()
    thread.join(5)
    assert seen == list(range(3, len(LIFE) + 1))


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4000), more=st.binary(max_size=30))
def test_any_beginning_of_a_file_replays(tmp_path_factory, cut, more):
    path = tmp_path_factory.mktemp("journal") / "events.jsonl"
    events = written(path)
    path.write_bytes(path.read_bytes()[:cut] + more.replace(b"\n", b""))
    found, _ = read_events(path)
    assert found == events[: len(found)]
    state = replay(found)
    assert state.stage in STAGES and state.last == len(found)
    with Journal(path) as journal:
        assert journal.write("started", source="docs").n == len(found) + 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["step", "loss", "row", "scores", "question", "from_step", "done", "text", "minutes", "seed", "x"]
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*_HANDLERS, "of another version"]), st.dictionaries(NAMES, VALUES)), max_size=12
    )
)
def test_events_of_any_shape_have_a_state(parts):
    events = [Event(n, "2026-01-01T00:00:00+00:00", kind, values) for n, (kind, values) in enumerate(parts, 1)]
    states = [replay(events[:k]) for k in range(len(events) + 1)]
    assert states[-1].last == len(events)
    assert sum(states[-1].unknown.values()) == sum(e.kind not in _HANDLERS for e in events)
