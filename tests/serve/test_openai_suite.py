"""openai-python's own tests of what creates something, unchanged and strict, against a server of ours.

`make client-suites` fetches them. They were written for a mock that accepts anything: what fails here has to be in the
table, with its reason, and what is in the table has to fail.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from client_suites import suite
from serve_fakes import FakeEngine, chat_tokenizer, running, served

pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.slow, pytest.mark.process]

FILES = [f"tests/api_resources/{name}.py" for name in (
    "chat/test_completions", "test_completions", "test_embeddings", "test_responses", "test_models",
)]  # fmt: skip
BASE64 = (
    "the client asks for base64 and, where it is strict, checks the answer against floats before it decodes it: "
    "it fails on every server that does as it was asked"
)
EXPECTED = {  # (file, test without its overload): why it fails
    ("chat/test_completions", "test_method_create_with_all_params"): (
        "sends audio, functions, prediction, web search, store=true, max_tokens=0, a logit_bias of no token: refused"
    ),
    ("test_completions", "test_method_create_with_all_params"): (
        "sends suffix, best_of=0, a logit_bias of no token, and stream_options where nothing is streamed: refused"
    ),
    ("test_responses", "test_method_create_with_all_params"): (
        "sends background=true, a conversation beside an earlier response, compaction, store=true: refused"
    ),
    ("test_embeddings", "test_method_create_with_all_params"): "dimensions=1: the vector cannot be cut, refused",
    ("test_embeddings", "test_method_create"): BASE64,
    ("test_embeddings", "test_raw_response_create"): BASE64,
    ("test_embeddings", "test_streaming_response_create"): BASE64,
}


def test_their_tests_pass_but_for_those_with_a_reason(tmp_path):
    folder = suite()
    if not (folder / "ready").exists():
        pytest.skip("openai-python's tests are not there: make client-suites fetches them")
    names = {name for file in FILES for name in re.findall(r'model="([^"]+)"', (folder / file).read_text())}
    engine = FakeEngine(chat_tokenizer("chatml"), "the cat sat on the mat")
    report = tmp_path / "report.xml"
    with running(served(engine, names=sorted(names), max_context=4096)) as url:
        command = [
            sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir=.", "-p", "no:cacheprovider",
            "-p", "no:xdist", "-p", "no:schemathesis", "-p", "pytest_asyncio", "-o", "asyncio_mode=auto",
            "-o", "asyncio_default_fixture_loop_scope=session", f"--junitxml={report}", "--tb=line", *FILES,
            "-k", "strict and not delete and (create or models)",
        ]  # fmt: skip
        known = {"PYTHONPATH": "deps", "TEST_API_BASE_URL": f"{url}/v1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            command, cwd=folder, env=os.environ | known, capture_output=True, text=True, timeout=120
        )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    passed, failed = 0, {}
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("classname", "").removeprefix("tests.api_resources.").rpartition(".")[0].replace(".", "/")
        key = file, re.sub(r"(_overload_\d+)?\[.*", "", case.get("name", ""))
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        passed += bad is None
        if bad is not None:
            failed.setdefault(key, bad.get("message"))
    assert failed.keys() == EXPECTED.keys(), {key: failed.get(key) for key in failed.keys() ^ EXPECTED.keys()}
    assert passed >= 48
