"""Code that passes tests: right programs, wrong ones, and those that try to be paid without the work."""

from __future__ import annotations

import gzip
import json

import pytest

from dacheng import sandbox
from dacheng.align.rewards import RewardError, RewardMix, Sample, TestsReward
from dacheng.align.rewards.assertions import NotAnAssertion, read_assertions
from dacheng.align.rewards.plain_values import Wrong, decode, read_answers
from dacheng.errors import DachengError

pytestmark = [pytest.mark.process, pytest.mark.skipif(sandbox.available() is None, reason="no sandbox on this machine")]

ADD = "def add(a, b):\n    return a + b\n"
ASSERTS = ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'", "assert abs(add(0.1, 0.2) - 0.3) < 1e-9"]


def score(response, meta, **fields):
    reward = TestsReward(seconds=2.0, workers=2, **fields)
    return RewardMix([(reward, 1.0)])([Sample("", response=response, meta=meta)])[0].total


def test_right_wrong_and_in_part():
    assert score(ADD, {"tests": ASSERTS}) == 1.0
    assert score(f"Here you are:\n```python\n{ADD}```\nDone.", {"tests": ASSERTS}) == 1.0
    wrong = "def add(a, b):\n    return a + b if isinstance(a, str) else a - b\n"
    assert score(wrong, {"tests": ASSERTS}) == 0.0
    assert score(wrong, {"tests": ASSERTS}, credit="share") == pytest.approx(1 / 3)
    assert score("no code at all, sorry", {"tests": ASSERTS}) == 0.0
    assert score("", {"tests": ASSERTS}) == 0.0
    assert score(ADD, {}) is None
    assert (
        score("def f(x): return helper(x)", {"tests": "assert f(2) == 4", "setup": "def helper(x): return x * 2"})
        == 1.0
    )


def test_calls_and_streams():
    calls = [{"call": "add(1, 2)", "expect": 3}, {"call": "add([1], [(2, 3)])", "expect": [1, [2, 3]]}]
    assert score(ADD, {"cases": calls}) == 1.0
    assert score(ADD, {"cases": [{"call": "add(True, 0)", "expect": True}]}) == 0.0  # 1 is not true
    streams = [{"stdin": "1 2\n", "stdout": "3"}, {"stdin": "5 5\n", "stdout": "10\n\n"}]
    assert score("print(sum(map(int, input().split())))", {"cases": streams}) == 1.0
    assert score("print(3)", {"cases": streams}, credit="share") == 0.5
    assert score("print(sum(map(int, input().split())))\nraise SystemExit(1)", {"cases": streams}) == 0.0


@pytest.mark.parametrize(
    "program",
    [
        "print('all tests passed')\nimport os\nos._exit(0)",
        "class Any:\n    def __eq__(self, other): return True\n    def __sub__(self, other): return 0\n"
        "def add(a, b): return Any()",
        "class Str(str):\n    def __eq__(self, other): return True\ndef add(a, b): return Str('x')",
        "class Int(int):\n    def __eq__(self, o): return True\n    def __index__(self): return 3\n"
        "def add(a, b): return Int(7)",
        "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.AssertionError = type('E', (BaseException,), {})\n"
        "def add(a, b): return 3",
        "import sys\nsys.exit(0)",
        # an answer to every call, through every stream there is
        "import os, json\nfor at in range(9):\n  for fd in (1, 2):\n"
        "    os.write(fd, (json.dumps({'at': at, 'value': ['b', True]}) + '\\n').encode())\nos._exit(0)",
        # the expected values, wherever they might be
        "import gc\ndef add(a, b):\n    for o in gc.get_objects():\n"
        "        if isinstance(o, str) and '==' in o and 'add(' in o:\n"
        "            return eval(o.split('==')[1])\n    return None",
        "import sys\nf = sys._getframe()\nwhile f:\n    f.f_locals.get('request', {}).pop('calls', None) if isinstance("
        "f.f_locals.get('request'), dict) else 0\n    f = f.f_back",
        "def add(a, b):\n    while True: pass",
        "def add(a, b): return [0] * 10 ** 12",
        "def add(a, b): return add(a, b)",
        "import ctypes\nctypes.string_at(0)",
        "while True: print('x' * 1000)",
        "import subprocess\nsubprocess.run(['true'])\ndef add(a, b): return a + b",
        "open('/tmp/x', 'w')\ndef add(a, b): return a + b",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')\ndef add(a, b): return a + b",
        "x = [\n",
        "\0",
        "#" * (5 << 20),
    ],
)
def test_what_does_not_pay(program):
    assert score(program, {"tests": ASSERTS}, fenced="never") == 0.0


def test_answers_before_the_time_ran_out_count():
    slow = "import time\ndef f(n):\n    time.sleep(60 * (n > 2))\n    return n\n"
    tests = [f"assert f({n}) == {n}" for n in range(1, 4)]
    assert score(slow, {"tests": tests}, credit="share") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("test", "program", "passes"),
    [
        ("assert f(2) is None", "def f(x): pass", True),
        ("assert f(2) is not None", "def f(x): pass", False),
        ("assert not f(2)", "def f(x): return []", True),
        ("assert f(2)", "def f(x): return 0", False),
        ("assert f(2) in (1, 2)", "def f(x): return x", True),
        ("assert 1 < f(2) <= 2", "def f(x): return x", True),
        ("assert set(f(2)) == {1, 2}", "def f(x): return [2, 1, 2]", True),
        ("assert sorted(f(2)) == [1, 2]", "def f(x): return {2, 1}", True),
        ("assert math.isclose(f(2), 1 / 3, rel_tol=1e-6)", "def f(x): return 0.33333333", True),
        (
            "assert f(2) == {'a': (1, 2.5), None: [b'x', 1j]}",
            "def f(x): return {'a': (1, 2.5), None: [b'x', 1j]}",
            True,
        ),
        ("assert f(2) == [1, 2]", "def f(x): return (1, 2)", False),
        ("assert f(f(2)) == 8", "def f(x): return x * 2", True),
        ("assert f(2)[0] == 5 and len(f(2)) == 1", "def f(x): return [5]", True),
        ("assert f(x=2) == 'é\\n'", "def f(x): return 'é\\n'", True),
        ("assert f(2) == float('inf')", "def f(x): return float('inf')", True),
        ("assert f(2) == [0] * 1000000000", "def f(x): return 1", False),
        ("assert f(2) < 'a'", "def f(x): return 1", False),
        ("assert sum([1, 2]) == 4", "def sum(x): return 3", False),
        ("assert sum([1, 2]) == 4", "def sum(x): return 4", True),
        ("assert len(sorted([3, 1])) == 1", "def sorted(x): return x[:1]", True),
        ("assert sorted(f(2), reverse=True) == [2, 1]", "def f(x): return [1, 2]", True),
        ("assert f(2) % 7 == 3", "def f(x): return b'%999999999d'", False),  # a gibibyte, if it were formatted here
        ("assert f(2) * 1000000000 == 3", "def f(x): return b'x'", False),
        ("assert 1 == 1", "def f(x): return x", None),
        ("assert isinstance(f(2), int)", "def f(x): return x", None),  # a program may redefine it
        ("assert math.fabs(f(2)) == 2", "import math\ndef f(x): return x", None),
        ("assert f(2).real == 2", "def f(x): return x", None),
        ("for i in range(3):\n    assert f(i) == i", "def f(x): return x", None),
        ("assert [f(i) for i in range(3)] == [0, 1, 2]", "def f(x): return x", None),
    ],
)
def test_the_forms_of_an_assertion(test, program, passes):
    if passes is None:
        with pytest.raises(RewardError, match="trust: true"):
            score(program, {"tests": test})
        assert score(program, {"tests": test}, trust=True) == 1.0
    else:
        assert score(program, {"tests": test}) == float(passes)


def test_trusted_tests_need_the_last_word():
    loop = "for i in range(3):\n    assert f(i) == i"
    assert score("def f(x): return x", {"tests": loop}, trust=True) == 1.0
    assert score("def f(x): return 1", {"tests": loop}, trust=True) == 0.0
    assert score("import sys\nsys.exit(0)", {"tests": loop}, trust=True) == 0.0


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"tests": 3}, "no text and no list"),
        ({"tests": []}, "no text and no list"),
        ({"tests": ["assert add(1, 2) =="]}, "does not parse"),
        ({"tests": ["x = 1"]}, "not an assertion"),
        ({"tests": "def check(candidate):\n    assert candidate(1) == 1"}, "function's name"),
        ({"cases": []}, "1 to 200"),
        ({"cases": [{"call": "add(1, 2)"}]}, "neither"),
        ({"cases": [3]}, "1 to 200"),
    ],
)
def test_tests_that_are_none(meta, words):
    with pytest.raises(RewardError, match=words):
        score(ADD, meta)


@pytest.mark.slow
def test_the_solutions_of_humaneval_pass_and_nothing_else_does(shared_data):
    with gzip.open(shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    reward = TestsReward(with_prompt=True, trust=True, fenced="never", tests="test")
    right = reward([Sample(row["prompt"], response=row["canonical_solution"], meta=row) for row in rows])
    assert right == [1.0] * 164
    assert sum(reward([Sample(row["prompt"], response="    return None\n", meta=row) for row in rows])) == 0
    split = 0
    for row in rows:
        try:
            split += bool(read_assertions(row["test"], row["entry_point"]))
        except NotAnAssertion:
            pass
    assert split == 157


def test_values_from_outside_are_only_plain_data():
    assert decode(["l", [["i", "0x7"], ["t", []], ["f", "inf"], ["n"], ["y", "00ff"]]]) == [
        7,
        (),
        float("inf"),
        None,
        b"\0\xff",
    ]
    deep = ["n"]
    for _ in range(60):
        deep = ["l", [deep]]
    for bad in (
        deep,
        [],
        ["x"],
        ["i", 7],
        ["s", 1],
        ["b", 1],
        ["e", [["l", []]]],
        ["d", [[1]]],
        3,
        None,
        {"a": 1},
        "i",
    ):
        with pytest.raises(Wrong):
            decode(bad)
    lines = '{"at": 0, "value": ["i", "1"]}\n{"at": 0, "value": ["i", "2"]}\nnoise\n[1]\n{"at": true}\n{"at": 1, "va'
    assert read_answers(lines) == {0: 1}


def test_refusing_without_a_sandbox(monkeypatch):
    monkeypatch.setattr("dacheng.sandbox.landlock.version", lambda: 0)
    monkeypatch.setattr("dacheng.sandbox.bubblewrap.works", lambda: False)
    with pytest.raises(DachengError, match="no sandbox on this machine"):
        TestsReward()


def test_a_sandbox_that_breaks_is_no_wrong_program(monkeypatch):
    reward = TestsReward()
    monkeypatch.setattr("dacheng.sandbox.landlock.version", lambda: 0)
    monkeypatch.setattr("dacheng.sandbox.bubblewrap.works", lambda: False)
    with pytest.raises(RewardError, match="did not run the program"):
        reward([Sample("", response=ADD, meta={"tests": ASSERTS})])
