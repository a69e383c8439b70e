"""PDFs are read in a process of their own: one that never ends, or kills its reader, costs that file and no other."""

import time

import pytest
from rag_documents import pdf

from dacheng.rag.readers import pdf as module
from dacheng.rag.readers.pdf import read_pdf
from dacheng.records import Drops

pytest.importorskip("pypdf")
SLEEPS = """
import sys, time
from dacheng.rag.readers import pdf_worker
real = pdf_worker.text_of
def text_of(data):
    if b"FOREVER" in data: time.sleep(1000)
    if b"DEADLY" in data: sys.exit(3)
    return real(data)
pdf_worker.text_of = text_of
pdf_worker.main()
"""


@pytest.fixture
def strange(monkeypatch):
    """The real process, with two kinds of file that hang and kill it."""
    real = module.subprocess.Popen
    monkeypatch.setattr(module.subprocess, "Popen", lambda argv, **pipes: real([argv[0], "-c", SLEEPS], **pipes))
    module._worker.stop()
    yield
    module._worker.stop()


def texts(data: bytes) -> tuple[list[str], dict[str, int]]:
    drops = Drops()
    blocks = list(read_pdf(data, "a.pdf", drops))
    return [line for block in blocks for _, line in block.lines], dict(drops.dropped)


def test_a_file_that_never_ends_is_given_up(strange, monkeypatch):
    assert texts(pdf("We study foxes."))[0] == ["We study foxes."]
    monkeypatch.setattr(module, "MAX_SECONDS", 0.5)
    began = time.monotonic()
    assert texts(pdf("x") + b"FOREVER") == ([], {"slow_pdf": 1})
    assert time.monotonic() - began < 20
    monkeypatch.setattr(module, "MAX_SECONDS", 60)
    assert texts(pdf("We study dogs."))[0] == ["We study dogs."]


def test_a_file_that_kills_its_reader_is_a_broken_one(strange):
    assert texts(pdf("x") + b"DEADLY") == ([], {"broken_pdf": 1})
    assert texts(pdf("We study dogs."))[0] == ["We study dogs."]


def test_pages_and_characters_are_bounded(monkeypatch):
    from dacheng.rag.readers import pdf_worker

    monkeypatch.setattr(pdf_worker, "MAX_PAGES", 2)
    found = pdf_worker.text_of(pdf("one", "two", "three", "four"))
    assert [line for _, line in found["lines"]] == ["one", "two"] and found["left_out"] == 2
    monkeypatch.setattr(pdf_worker, "MAX_PAGES", 9)
    monkeypatch.setattr(pdf_worker, "MAX_CHARACTERS", 6)
    found = pdf_worker.text_of(pdf("one", "two", "three", "four"))
    assert [line for _, line in found["lines"]] == ["one", "tw"] and found["left_out"] == 2
