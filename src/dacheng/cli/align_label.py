"""dacheng align label and agreement: pairs of replies compared by people, and what their labels are worth."""

from __future__ import annotations

import contextlib
import getpass
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from dacheng.errors import UsageError

if TYPE_CHECKING:
    from dacheng.align.labelling.pairs import Pair


def label(
    pairs: Path,
    *,
    out: Path | None = None,
    annotator: str | None = None,
    terminal: bool = False,
    seed: int = 0,
    port: int = 8000,
    open: bool = False,
) -> int:
    """Shows pairs of replies, on a page or in the terminal, and writes down which is better.

    Example: dacheng align label recipes/align/compare.jsonl --terminal --annotator ada

    The page is for anyone at this machine; each gives their name. Labels are only ever appended, so that it can be
    ended and begun again at any time, and several people can label at once.

    Parameters
    ----------
    pairs
        JSON lines of {"prompt", "responses": [one, other, …]}, or preferences in any known layout (chosen and rejected
        are then not shown as such).
    out
        The file of labels; PAIRS with .labels.jsonl when left out.
    annotator
        Your name, for the terminal; the login name when left out.
    terminal
        A form in this terminal instead of the page.
    seed
        Of the order of the pairs, and of which reply stands first.
    port
        Of the page; another is taken when this one is not free.
    open
        Open the page in the browser.
    """
    from dacheng.align.labelling.labels import LabelStore
    from dacheng.align.labelling.session import Session

    store = LabelStore(_labels(pairs, out))
    session = Session(_pairs(pairs), store, seed)
    if terminal:
        from dacheng.cli.label_form import label_in_terminal

        with contextlib.suppress(KeyboardInterrupt):
            written = label_in_terminal(session, annotator or getpass.getuser())
            print(f"{written} labels are in {store.path}", file=sys.stderr)
        return 0
    if annotator is not None:
        raise UsageError("on the page, each gives their name", field="--annotator", value=annotator,
                         remedy="leave it out, or --terminal")  # fmt: skip
    from dacheng.cli.serve import _need_extra

    _need_extra()
    from dacheng.serve.label_server import serve_labels

    with serve_labels(session, port) as url:
        print(f"{len(session.pairs)} pairs; the page: {url}/label (labels go to {store.path}; Ctrl-C ends it)",
              file=sys.stderr, flush=True)  # fmt: skip
        if open:
            import webbrowser

            webbrowser.open(f"{url}/label")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


def agreement(pairs: Path, *, labels: Path | None = None, export: Path | None = None, json: bool = False) -> int:
    """Says how far annotators agree, and writes what most of them prefer.

    Example: dacheng align agreement recipes/align/compare.jsonl --export preferences.jsonl

    Parameters
    ----------
    pairs
        The file that was labelled.
    labels
        The labels; PAIRS with .labels.jsonl when left out.
    export
        Preferences ({"prompt", "chosen", "rejected", "margin"} a line) of the pairs on which most annotators agree.
    json
        One JSON document on stdout.
    """
    from dacheng.align.labelling.agreement import agreement_report, lines_of
    from dacheng.align.labelling.labels import LabelStore
    from dacheng.align.labelling.verdicts import write_preferences
    from dacheng.cli.console import print_json
    from dacheng.records import Drops

    path, known = _labels(pairs, labels), _pairs(pairs)
    if not path.is_file():
        raise UsageError("there are no labels yet", field="--labels", value=str(path),
                         remedy=f"dacheng align label {pairs}")  # fmt: skip
    found, damaged = LabelStore(path).read()
    report, drops = agreement_report(found, known, damaged), Drops()
    written = None if export is None else write_preferences(export, found, known, drops)
    if json:
        print_json({**report, "exported": written, "not_exported": dict(drops.dropped)})
        return 0
    print("\n".join(lines_of(report)))
    if export is not None:
        left = ", ".join(f"{count} {reason}" for reason, count in drops.dropped.items())
        print(f"{written} preferences: {export}" + (f" (left out: {left})" if left else ""))
    return 0


def _labels(pairs: Path, given: Path | None) -> Path:
    return pairs.with_suffix(".labels.jsonl") if given is None else given


def _pairs(path: Path) -> list[Pair]:
    """The pairs of a file; what was left out is said."""
    from dacheng.align.labelling.pairs import read_pairs
    from dacheng.records import Drops

    drops = Drops()
    found = read_pairs([path], drops)
    for reason, count in drops.dropped.items():
        print(f"  left out: {count} {reason} ({drops.examples.get(reason, '')})", file=sys.stderr)
    return found
