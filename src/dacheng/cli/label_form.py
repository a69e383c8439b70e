"""Labelling in a terminal: a pair, the two replies one under the other, and a letter for what is better."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from dacheng.align.labelling.pairs import spoken
from dacheng.align.labelling.session import Session, Shown
from dacheng.align.show import printable

KEYS = {"1": "first2", "2": "first1", "3": "tie", "4": "second1", "5": "second2", "s": "skip"}
HELP = "1 first much better · 2 first · 3 equally good · 4 second · 5 second much better · s skip · u take back · q end"


def label_in_terminal(
    session: Session,
    annotator: str,
    *,
    read: Callable[[str], str] = input,
    out: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Goes through the pairs until all are labelled, q, or the end of the input; how many labels were written.

    A line is one of KEYS, with a reason behind it if one likes ("2 it is shorter"), u or q. Raises UsageError for a
    name that is none."""
    out = out or sys.stdout
    written, began = 0, clock()
    shown = session.next(annotator)
    while shown is not None:
        _print(shown, out)
        began = clock()
        while True:
            try:
                word, _, note = read("> ").strip().partition(" ")
            except EOFError:
                return written
            word = word.lower()
            if word == "q":
                return written
            if word == "u":
                undone = session.undo(annotator)
                print("taken back" if undone else "there is nothing to take back", file=out)
                break
            if word in KEYS:
                session.say(annotator, shown.pair.id, KEYS[word], round(clock() - began, 2), note.strip()[:2000])
                written += 1
                break
            print(HELP, file=out)
        shown = session.next(annotator)
    print("all pairs are labelled, thank you", file=out)
    return written


def _print(shown: Shown, out: TextIO) -> None:
    rule = "─" * 72
    print(f"\n{rule}\n{shown.done + 1} of {shown.total}\n", file=out)
    for message in shown.pair.prompt:
        print(f"[{printable(str(message.get('role')))}] {printable(spoken([message]))}", file=out)
    for number, name in enumerate(shown.replies, 1):
        print(f"\n── reply {number} ──\n{printable(spoken(shown.pair.reply(name)))}", file=out)
    print(f"\n{HELP}", file=out, flush=True)
