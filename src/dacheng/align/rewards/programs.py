"""Code that passes tests, in the sandbox: assertions, calls with what they should give, input with its output.

The verdict is made outside: a program gives values or text, and never sees what is expected (assertions.py). So to
print "passed", to leave with exit code 0, to redefine `__eq__` or to catch AssertionError is no way to the reward. With
`trust: true` tests that can't be split that way run inside beside the program, which a program can cheat.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from dacheng import sandbox
from dacheng.align.rewards.assertions import Assertion, NotAnAssertion, read_assertions
from dacheng.align.rewards.base import RewardError, Sample
from dacheng.align.rewards.fields import field_of, wrong_field
from dacheng.align.rewards.plain_values import HARNESS, read_answers
from dacheng.align.rewards.syntax import Fenced, code_of
from dacheng.errors import UsageError
from dacheng.sandbox import Limits, SandboxResult

MAX_CASES = 200
_OUTPUT = 1 << 20

Verdict = Callable[[Sequence[SandboxResult]], list[bool]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to run for one sample, as (program, its input), and how many tests those runs pass."""

    runs: list[tuple[str, str]]
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class TestsReward:
    """1 where the program passes all its tests, else 0 (credit: "share" gives the share of tests passed).

    In a sample's meta: `tests`, assertions as a text or a list of texts (MBPP's test_list, HumanEval's test with
    `entry_point`); or `cases`, a list of {"call": "f(2)", "expect": 3} or {"stdin": "2", "stdout": "3"} (trailing white
    space of lines and of the end does not count). `setup`: code before the program. None where it has neither.

    The program is the response's last fenced block, else the response; with_prompt puts the prompt before it
    (HumanEval). A program that runs out of time or memory passes what it had answered by then. workers: programs at a
    time, 0: one a core.

    Raises UsageError for fields that are none, DachengError where this machine has no sandbox, RewardError for tests
    that can't be read or, without trust, can't be decided outside of the program.
    """

    __test__ = False  # no test of pytest's

    name: str = "tests"
    tests: str = "tests"
    cases: str = "cases"
    setup: str = "setup"
    entry_point: str = "entry_point"
    with_prompt: bool = False
    fenced: Fenced = "auto"
    credit: Literal["all", "share"] = "all"
    trust: bool = False
    seconds: float = 5.0
    memory_mb: int = 256
    workers: int = 0

    def __post_init__(self) -> None:
        sandbox.require()
        self._limits()
        if self.workers < 0:
            raise UsageError("must not be negative", field=f"{self.name}.workers", value=self.workers, remedy="0")

    def _limits(self) -> Limits:
        return Limits(seconds=self.seconds, memory_bytes=self.memory_mb << 20, output_bytes=_OUTPUT)

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        plans = [self._plan(sample) for sample in samples]
        jobs = [job for plan in plans if plan is not None for job in plan.runs]
        limits = self._limits()
        scores: list[float | None] = []
        with ThreadPoolExecutor(self.workers or len(os.sched_getaffinity(0))) as pool:
            # Judged as they come: what all programs of a set print together is never held at once.
            results = pool.map(lambda job: sandbox.run_python(job[0], stdin=job[1], limits=limits), jobs)
            for plan in plans:
                if plan is None:
                    scores.append(None)
                    continue
                passed = plan.verdict([self._ran(next(results)) for _ in plan.runs])
                share = sum(passed) / len(passed) if passed else 0.0
                scores.append(share if self.credit == "share" else float(share == 1.0))
        return scores

    def _ran(self, result: SandboxResult) -> SandboxResult:
        if result.status == "refused" and "a program of" not in result.stderr:  # a program too long is just wrong
            raise RewardError(
                f"reward {self.name}: the sandbox did not run the program: {result.stderr.strip()}",
                field=f"rewards.{self.name}",
                remedy="mend the sandbox (dacheng doctor), or lower workers on a busy machine",
            )
        return result

    def _plan(self, sample: Sample) -> _Plan | None:
        tests, cases = field_of(sample, self.tests), field_of(sample, self.cases)
        if tests is None and cases is None:
            return None
        code = code_of(sample.response, self.fenced)
        if code is None or not code.strip():
            return _Plan([], lambda results: [])
        program = (sample.prompt if self.with_prompt else "") + code
        setup = field_of(sample, self.setup) or ""
        program = f"{setup}\n{program}" if setup else program
        if tests is not None:
            return self._assertions(program, tests, field_of(sample, self.entry_point))
        if (
            not isinstance(cases, list)
            or not 0 < len(cases) <= MAX_CASES
            or not all(isinstance(c, dict) for c in cases)
        ):
            raise wrong_field(self.name, self.cases, cases, f"no list of 1 to {MAX_CASES} cases")
        if all("call" in case and "expect" in case for case in cases):
            return _calls(program, [str(case["call"]) for case in cases], [case["expect"] for case in cases])
        if all("stdout" in case for case in cases):
            wanted = [_trimmed(str(case["stdout"])) for case in cases]
            return _Plan(
                [(program, str(case.get("stdin", ""))) for case in cases],
                lambda results: [r.ok and _trimmed(r.stdout) == want for r, want in zip(results, wanted, strict=True)],
            )
        raise wrong_field(self.name, self.cases, cases, "neither {call, expect} nor {stdin, stdout} throughout")

    def _assertions(self, program: str, tests: Any, entry_point: Any) -> _Plan:
        lines = [tests] if isinstance(tests, str) else tests
        if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
            raise wrong_field(self.name, self.tests, tests, "no text and no list of texts")
        text = "\n".join(lines)
        try:
            return _asked(program, read_assertions(text, entry_point))
        except NotAnAssertion as error:
            if self.trust:
                return _trusting(program, text, entry_point)
            raise RewardError(
                f"reward {self.name}: {error.problem}: {error.value}",
                field=error.field,
                remedy="write it as assert f(…) == value, or set trust: true, which a program can cheat",
            ) from None


def _asked(program: str, assertions: list[Assertion]) -> _Plan:
    calls = [call for assertion in assertions for call in assertion.calls]

    def verdict(results: Sequence[SandboxResult]) -> list[bool]:
        answers, at, passed = read_answers(results[0].stdout), 0, []
        for assertion in assertions:
            numbers = range(at, at + len(assertion.calls))
            at += len(assertion.calls)
            known = all(number in answers for number in numbers)
            passed.append(known and assertion.holds([answers[number] for number in numbers]))
        return passed

    return _Plan([(HARNESS, _request(program, calls))], verdict)


def _calls(program: str, calls: list[str], expected: list[Any]) -> _Plan:
    def verdict(results: Sequence[SandboxResult]) -> list[bool]:
        answers = read_answers(results[0].stdout)
        return [at in answers and _json_equal(answers[at], want) for at, want in enumerate(expected)]

    return _Plan([(HARNESS, _request(program, calls))], verdict)


def _trusting(program: str, tests: str, entry_point: Any) -> _Plan:
    """The tests inside, after the program. A word that the program could not guess marks the end; one that looks
    through its interpreter could find it."""
    word = secrets.token_hex(16)
    check = f"\ncheck({entry_point})" if entry_point and "def check(" in tests else ""
    code = f"{program}\n\n{tests}{check}\nprint({word!r})\n"
    return _Plan([(code, "")], lambda results: [r.ok and r.stdout.rstrip().endswith(word) for r in results])


def _request(program: str, calls: list[str]) -> str:
    return json.dumps({"code": program, "calls": list(enumerate(calls))}) + "\n"


def _json_equal(value: Any, want: Any) -> bool:
    """Equal, where JSON has no tuples, sets or keys but text."""
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, list) and isinstance(want, list):
        return len(value) == len(want) and all(map(_json_equal, value, want))
    if isinstance(value, dict) and isinstance(want, dict):
        return {str(k) for k in value} == set(want) and all(_json_equal(v, want[str(k)]) for k, v in value.items())
    if isinstance(value, float) and isinstance(want, (int, float)):
        return abs(value - want) <= 1e-9 * max(1.0, abs(want))
    return bool(value == want) and isinstance(value, bool) == isinstance(want, bool)


def _trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
