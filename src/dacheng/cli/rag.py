"""dacheng rag: a folder of documents as passages in one file, and the passages nearest to a question."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from dacheng.errors import DachengError, UsageError

if TYPE_CHECKING:
    from dacheng.rag.retrieve import Hit
    from dacheng.rag.store import PassageStore, SyncReport

app = App(name="rag", help="Documents as passages that can be searched and cited.")

_SHOWN = 600  # characters of a passage on the screen


@app.command
def index(source: str, *, out: Path, vectors: bool = False, json: bool = False) -> int:
    """Reads a folder of documents into one file; again, it reads only what has changed.

    Markdown, text, reStructuredText, HTML, PDF, docx, CSV and code. Anything else is counted with the reason.

    Example: dacheng rag index docs/ --out docs.db

    Parameters
    ----------
    source
        A folder, or stdlib: the documentation of this Python's own library.
    out
        The file; other verbs take it.
    vectors
        Also vectors by the sentence encoder that is installed, for hybrid search: minutes for some thousand passages.
    json
        One JSON document on stdout.
    """
    from dacheng.cli.console import amount, print_json, reporter
    from dacheng.rag.store import PassageStore

    console = reporter()
    with PassageStore.open(out, create=True) as store:
        with console.task(f"reading {source}", unit="B") as task:

            def show(report: SyncReport) -> None:
                text = f"{report.done_files}/{report.total_files} files, {report.passages} passages"
                task.update(report.bytes, total=report.total_bytes, text=text)

            try:
                report = store.sync(source, show)
            except KeyboardInterrupt as error:
                error.add_note(f"{out} can be searched as it is; what was read is kept")
                raise
        encoded = _encode(store, console) if vectors else None
        if json:
            print_json({"out": str(out), **report.to_dict(), "vectors": encoded, "fingerprint": store.fingerprint})
        else:
            print(
                f"{out}: {report.passages} passages of {report.files} files "
                f"({report.added} new, {report.removed} gone), "
                f"{amount(report.bytes, 'B')} in {report.seconds:.1f} s"
            )
    _tell_drops(report)
    if not report.passages:
        raise DachengError(
            "nothing in this folder could be read",
            field="source",
            value=source,
            remedy="name a folder with documents: Markdown, text, HTML, PDF, docx, CSV or code",
        )
    return 0


def _tell_drops(report: SyncReport) -> None:
    """On stderr: what was not read and why, with the first file of each reason."""
    drops = report.drops
    for counts, verb in ((drops.dropped, "not read"), (drops.altered, "altered")):
        for reason, count in sorted(counts.items()):
            example = drops.examples.get(reason)
            print(f"  {verb}: {count} {reason}" + (f" ({example})" if example else ""), file=sys.stderr)
    if any(reason.startswith("needs_pypdf") for reason in drops.dropped):
        print("  to read PDF: pip install 'dacheng[rag]', then the same command again", file=sys.stderr)


def _encode(store: PassageStore, console: Any) -> int:
    """Vectors for the passages that have none; how many were made. Stopped, the next call goes on."""
    from dacheng.cli.console import use_threads
    from dacheng.rag.dense import COMMAND, EncodeReport, encode_store, find_encoder

    use_threads()
    encoder = find_encoder()
    if encoder is None:
        raise UsageError("no sentence encoder is installed", field="--vectors", remedy=COMMAND)
    with console.task(f"vectors by {encoder.name}") as task:

        def show(report: EncodeReport) -> None:
            task.update(report.encoded, total=report.total, text=f"{report.encoded}/{report.total} passages")

        return encode_store(store, encoder, show).encoded


@app.command
def search(
    store: Path,
    question: Annotated[str, Parameter(allow_leading_hyphen=True)],
    *,
    k: int = 5,
    mode: Literal["hybrid", "bm25", "dense"] = "hybrid",
    json: bool = False,
) -> int:
    """Shows the passages nearest to a question, with file and lines.

    Example: dacheng rag search docs.db "how are checkpoints named?"

    Parameters
    ----------
    store
        A file made by dacheng rag index.
    question
        In words.
    k
        How many passages.
    mode
        By terms (bm25), by vectors (dense), or by both; hybrid is bm25 where the store has no vectors.
    json
        One JSON document on stdout.
    """
    from dacheng.cli.console import print_json
    from dacheng.rag import retrieve
    from dacheng.rag.store import PassageStore

    with PassageStore.open(store) as passages:
        encoder = None
        if mode == "dense" or (mode == "hybrid" and passages.encoders()):
            from dacheng.rag.dense import find_encoder

            encoder = find_encoder()
        retriever = retrieve.Retriever(passages, encoder)
        used = retriever.mode if mode == "hybrid" else mode
        hits = retriever.search(question, k, mode)
        if json:
            print_json({"question": question, "mode": used, "hits": [_as_dict(hit) for hit in hits]})
            return 0
        if not hits:
            print(f"none of {len(passages)} passages has a word of the question", file=sys.stderr)
        for number, hit in enumerate(hits, 1):
            print(_shown(number, hit))
    return 0


def _as_dict(hit: Hit) -> dict[str, Any]:
    return {**asdict(hit), "place": hit.passage.place}


def _shown(number: int, hit: Hit) -> str:
    passage = hit.passage
    text = passage.text if len(passage.text) <= _SHOWN else passage.text[:_SHOWN] + "…"
    title = f"[{number}] {passage.source}, {passage.place}" + (f": {passage.heading}" if passage.heading else "")
    return "\n".join([f"{title}  ({hit.score:.3g})", *(f"    {line}" for line in text.splitlines()), ""])
