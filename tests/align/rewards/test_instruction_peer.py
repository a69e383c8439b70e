"""The authors' verdicts on instructions, made anew: `pytest -m peer tests/align/rewards` beside lm_eval and nltk."""

from __future__ import annotations

import json
import runpy

import pytest

pytestmark = pytest.mark.peer


def test_the_golden_is_what_the_authors_code_says_now(goldens, shared_data):
    for name in ("lm_eval", "nltk", "langdetect", "immutabledict"):
        pytest.importorskip(name)
    made = runpy.run_path(str(goldens / "make_instruction_checks.py"))["make"]
    found = made(shared_data / "ifeval" / "en_input_data.jsonl")
    assert found == json.loads((goldens / "instruction_checks.json").read_text())
