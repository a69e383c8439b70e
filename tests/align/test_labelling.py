"""Pairs, labels that are only appended, the order that annotators see, agreement, and what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_fixtures import HOSTILE, LINES, session, write_pairs

from dacheng.align.labelling.agreement import agreement_report, lines_of
from dacheng.align.labelling.labels import Label, LabelStore, in_force
from dacheng.align.labelling.pairs import read_pairs, spoken
from dacheng.align.labelling.verdicts import preferences_of, write_preferences
from dacheng.data.preferences import read_preferences
from dacheng.errors import DachengError, UsageError
from dacheng.evaluate.agreement import alpha_interval, cohen_kappa, krippendorff_alpha
from dacheng.records import Drops


def test_pairs_of_every_layout(tmp_path):
    drops = Drops()
    pairs = read_pairs([write_pairs(tmp_path)], drops)
    assert len(pairs) == 4 and not drops.dropped and not drops.altered
    assert [p.said for p in pairs] == [None, None, None, "a"]
    assert spoken(pairs[0].a) == "2" and spoken(pairs[2].prompt) == "Be short.\n\n[user] 天气好吗？"
    again = read_pairs([write_pairs(tmp_path)] * 2, drops)
    assert [p.id for p in again] == [p.id for p in pairs] and drops.dropped == {"the_same_pair_again": 4}


def test_each_two_of_several_replies_are_a_pair(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "q", "responses": ["1", "2", "3", "4"], "id": 7}))
    assert len({p.id for p in read_pairs([tmp_path / "x.jsonl"], Drops())}) == 6
    drops = Drops()
    bad = [{"prompt": "q", "responses": ["1"]}, {"prompt": "q", "responses": list("0123456789")},
           {"responses": ["1", "2"]},
           {"prompt": "q", "responses": ["1", "1"]}, {"prompt": "q", "completion": "1", "label": True}, 3]  # fmt: skip
    (tmp_path / "y.jsonl").write_text(
        "\n".join(json.dumps(line) for line in [*bad, {"prompt": "q", "a": "1", "b": "2", "c": 1}])
    )
    assert len(read_pairs([tmp_path / "y.jsonl"], drops)) == 1
    assert sum(drops.dropped.values()) == 6 and drops.dropped["not_2_to_9_replies"] == 2
    assert drops.altered == {"field_ignored:c": 1}
    (tmp_path / "z.jsonl").write_text("{}")
    with pytest.raises(DachengError):
        read_pairs([tmp_path / "z.jsonl"], Drops())


def test_real_pairs(shared_data):
    drops = Drops()
    file = shared_data / "rasbt_instruct" / "instruction-data-with-preference.json"
    pairs = read_pairs([file], drops)
    assert len(pairs) + sum(drops.dropped.values()) == 1100 and len(pairs) > 1000
    assert all(p.said == "a" for p in pairs)


# --- labels -----------------------------------------------------------------------------------------------------------
def test_the_last_label_counts_and_nothing_is_ever_rewritten(tmp_path):
    store = LabelStore(tmp_path / "l.jsonl")
    store.append(Label("p", "ada", "a", 2))
    first = store.path.read_bytes()
    store.append(Label("p", "ada", "b", 1))
    store.append(Label("q", "ada", "tie"))
    store.append(Label("q", "ada", "undo"))
    store.append(Label("p", "bo", "skip"))
    labels, damaged = store.read()
    assert store.path.read_bytes().startswith(first) and (len(labels), damaged) == (5, 0)
    assert all(label.time for label in labels)
    assert {key: label.choice for key, label in in_force(labels).items()} == {("ada", "p"): "b", ("bo", "p"): "skip"}


def test_a_torn_line_is_not_continued(tmp_path):
    store = LabelStore(tmp_path / "l.jsonl")
    store.append(Label("p", "ada", "a", 1))
    with store.path.open("ab") as file:
        file.write(b'{"pair": "q", "annot')
    assert [x.pair for x in store.read()[0]] == ["p"] and store.read()[1] == 1
    store.append(Label("r", "ada", "b", 1))
    assert [x.pair for x in store.read()[0]] == ["p", "r"] and store.read()[1] == 1
    with store.path.open("ab") as file:
        file.write(
            b"[" * 100_000 + b"\n" + b'{"pair": "q", "annotator": "x\\u0007", "choice": "a", "strength": 1}\n3\n'
        )
    assert len(store.read()[0]) == 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"annotator": ""}, "annotator"),
        ({"annotator": " ada"}, "annotator"),
        ({"annotator": "a\x1bda"}, "annotator"),
        ({"annotator": "a" * 65}, "annotator"),
        ({"annotator": 3}, "annotator"),
        ({"choice": "c"}, "choice"),
        ({"strength": 3}, "strength"),
        ({"strength": True}, "strength"),
        ({"choice": "tie"}, "strength"),
        ({"first": "c"}, "first"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"note": "x" * 2001}, "note"),
        ({"pair": ""}, "pair"),
    ],
)
def test_what_is_no_label(changes, field):
    with pytest.raises(UsageError) as caught:
        Label(**{"pair": "p", "annotator": "ada", "choice": "a", "strength": 1} | changes)
    assert caught.value.field == field


def test_no_room_for_a_label_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DachengError) as caught:
        LabelStore(tmp_path / "file" / "l.jsonl").append(Label("p", "ada", "tie"))
    assert caught.value.field == "--out"


@pytest.mark.process
def test_many_processes_append_whole_lines(tmp_path):
    code = (
        "import sys; from dacheng.align.labelling.labels import Label, LabelStore\n"
        "store = LabelStore(sys.argv[1])\n"
        "for i in range(40): store.append(Label(f'p{i}', sys.argv[2], 'a', 1, note='x' * 500))\n"
    )
    path = tmp_path / "l.jsonl"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen([sys.executable, "-c", code, str(path), f"ann{i}"], env=env) for i in range(3)]
    assert [run.wait(120) for run in runs] == [0, 0, 0]
    labels, damaged = LabelStore(path).read()
    assert (len(in_force(labels)), damaged) == (120, 0)


# --- sessions ---------------------------------------------------------------------------------------------------------
def test_everyone_sees_the_same_pairs_in_the_same_order_and_the_replies_in_their_own(tmp_path):
    found = session(tmp_path)
    orders = {}
    for who in ("ada", "bo", "cy"):
        seen = []
        while (shown := found.next(who)) is not None:
            assert shown.done == len(seen) and shown.total == 4
            seen.append((shown.pair.id, shown.first))
            found.say(who, shown.pair.id, "first1", seconds=1.5)
        orders[who] = seen
    assert len({tuple(p for p, _ in seen) for seen in orders.values()}) == 1
    firsts = [first for seen in orders.values() for _, first in seen]
    assert 0 < firsts.count("a") < len(firsts)
    for who, seen in orders.items():  # what was said of the first is kept of the reply that stood there
        for label in (x for x in found.store.read()[0] if x.annotator == who):
            assert label.choice == label.first == dict(seen)[label.pair]
    again = session(tmp_path)
    assert again.count("ada") == 4 and again.next("ada") is None


def test_undo_brings_the_last_pair_back(tmp_path):
    found = session(tmp_path)
    assert found.undo("ada") is None
    one = found.next("ada").pair.id
    found.say("ada", one, "second2", note="因为")
    two = found.next("ada").pair.id
    found.say("ada", two, "tie")
    assert found.undo("ada").pair == two and found.next("ada").pair.id == two
    assert found.undo("ada").pair == one and found.next("ada").pair.id == one
    assert found.undo("ada") is None and len(found.store.read()[0]) == 4


def test_what_cannot_be_said(tmp_path):
    found = session(tmp_path)
    pair = found.next("ada").pair.id
    for args, field in (
        (("ada", "x", "tie"), "pair"),
        (("ada", pair, "a"), "choice"),
        (("", pair, "tie"), "annotator"),
    ):
        with pytest.raises(UsageError) as caught:
            found.say(*args)
        assert caught.value.field == field
    assert not found.store.path.exists()


# --- agreement --------------------------------------------------------------------------------------------------------
def test_kappa_and_alpha_are_the_peers(goldens):
    for case in json.loads((goldens / "agreement.json").read_text())["cases"]:
        table = case["labels"]
        both = [(a, b) for a, b in zip(table[0], table[1]) if a is not None and b is not None]
        assert cohen_kappa(*map(list, zip(*both))) == pytest.approx(case["kappa"], abs=1e-9)
        units = [[v for v in column if v is not None] for column in zip(*table)]
        for level, alpha in case["alpha"].items():
            assert krippendorff_alpha(units, level) == pytest.approx(alpha, abs=1e-9)


@pytest.mark.peer
def test_the_golden_is_made_again(goldens, monkeypatch):
    pytest.importorskip("krippendorff")
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(goldens))
    from make_agreement import cases

    assert cases() == json.loads((goldens / "agreement.json").read_text())["cases"]


def test_krippendorffs_own_example():
    """Krippendorff 2011, section C: 12 units, 4 observers, gaps; .743 nominal, .815 ordinal, .849 interval."""
    rows = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    units = [[float(v) for v in column if v != "."] for column in zip(*(row.split() for row in rows))]
    found = [krippendorff_alpha(units, level) for level in ("nominal", "ordinal", "interval")]
    assert found == pytest.approx([0.743, 0.815, 0.849], abs=5e-4)


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=8), st.randoms())
def test_alpha_depends_on_neither_order_nor_names(units, draw):
    values = krippendorff_alpha(units)
    mixed = [draw.sample(unit, len(unit)) for unit in units]
    draw.shuffle(mixed)
    names = dict(enumerate(draw.sample(range(4), 4)))
    other = krippendorff_alpha([[names[v] for v in unit] for unit in mixed])
    assert (values is None) == (other is None) and (values is None or values == pytest.approx(other))
    assert values is None or values <= 1 + 1e-12


def test_full_agreement_is_one_and_what_is_not_defined_is_none():
    assert cohen_kappa("aabb", "aabb") == 1 and krippendorff_alpha([[1, 1], [2, 2, 2]]) == 1
    assert cohen_kappa("ab", "ba") == -1
    assert cohen_kappa("", "") is None and cohen_kappa("aa", "aa") is None
    for units in ([], [[1], [2]], [[1, 1], [1, 1]]):
        assert krippendorff_alpha(units) is None and alpha_interval(units) is None
    with pytest.raises(UsageError):
        cohen_kappa("a", "ab")
    found = alpha_interval([[1, 1], [2, 2], [1, 2], [2, 2], [1, 1]])
    assert found.low <= found.estimate <= found.high and found.n == 5


def test_the_report_names_bias_and_agreement(tmp_path):
    found = session(tmp_path)
    ids = list(found.pairs)
    for who, words in (("ada", ["first2"] * 4), ("bo", ["first1", "tie", "skip", "second1"])):
        for pair, said in zip(ids, words):
            found.say(who, pair, said, seconds=3.0)
    found.store.append(Label("elsewhere", "ada", "tie"))
    report = agreement_report(found.store.read()[0], list(found.pairs.values()))
    assert report["pairs"] == {"all": 4, "labelled": 4, "by_two_or_more": 3, "agreed": report["pairs"]["agreed"]}
    ada, bo = report["annotators"]["ada"], report["annotators"]["bo"]
    assert ada["first"]["estimate"] == 1.0 and ada["labels"] == 4 and ada["seconds"] == 3.0
    assert (bo["ties"], bo["skips"]) == (1, 1) and ada["longer"]["n"] == 4 and ada["as_the_file"]["n"] == 1
    assert report["kappa"][0]["pairs"] == 3 and report["elsewhere"] == 1
    text = "\n".join(lines_of(report))
    assert "Krippendorff" in text and "1 labels are of pairs that are not in the file" in text
    json.dumps(report, allow_nan=False)


def test_verdicts_are_preferences_that_are_read(tmp_path):
    found = session(tmp_path)
    one, two, three, _ = found.pairs
    for who, pair, choice, strength in (("ada", one, "b", 2), ("bo", one, "b", 1), ("cy", one, "tie", 0),
                                        ("ada", two, "a", 1), ("bo", two, "b", 1),
                                        ("ada", three, "tie", 0)):  # fmt: skip
        found.store.append(Label(pair, who, choice, strength))
    drops = Drops()
    pairs = list(found.pairs.values())
    labels = found.store.read()[0]
    (made,) = preferences_of(labels, pairs, drops)
    assert drops.dropped == {"evenly_split": 1, "a_tie": 1, "no_label": 1}
    assert made["chosen"] == found.pairs[one].b and made["margin"] == 1.0 and made["annotators"] == ["ada", "bo", "cy"]
    assert write_preferences(tmp_path / "p.jsonl", labels, pairs, Drops()) == 1
    (read,) = read_preferences([tmp_path / "p.jsonl"], Drops())
    assert read.said.chosen == found.pairs[one].b and read.said.margin == 1.0 and read.id == one
    with pytest.raises(DachengError):
        write_preferences(tmp_path / "q.jsonl", [], pairs, Drops())
    assert not (tmp_path / "q.jsonl").exists() and HOSTILE in LINES[1]["prompt"]


def test_tools_stay_with_their_pair(tmp_path):
    tools = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "What time is it?", "responses": ["Noon.", "Late."], "tools": tools}))
    (pair,) = read_pairs([file], Drops())
    (made,) = preferences_of([Label(pair.id, "ada", "a", 1)], [pair], Drops())
    assert made["tools"] == tools
    write_preferences(tmp_path / "p.jsonl", [Label(pair.id, "ada", "a", 1)], [pair], Drops())
    assert read_preferences([tmp_path / "p.jsonl"], Drops())[0].said.tools == tools
