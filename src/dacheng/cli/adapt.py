"""dacheng adapt: your documents and a small model, to measured, grounded answers."""

from __future__ import annotations

import contextlib
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import UsageError

if TYPE_CHECKING:
    from dacheng.protocols import LanguageModel
    from dacheng.stages.adapting.model_room import ModelRoom
    from dacheng.stages.adapting.run import Run

DEFAULT_OUT = Path("runs/adapt")


def adapt(
    source: str,
    *,
    model: str | None = "smollm2",
    minutes: float = 6.0,
    out: Path = DEFAULT_OUT,
    open: bool = False,
    no_web: bool = False,
    port: int = 8000,
    seed: int = 0,
    no_train: bool = False,
    api_key_file: Path | None = None,
    json: bool = False,
) -> int:
    """Reads documents, examines a model on them, adapts it, examines it again, and lets you ask.

    Example: dacheng adapt stdlib --model smollm2 --minutes 6 --open

    Interrupted or killed at any point, the same command goes on. While it runs, and then for as long as it is left
    running, a page shows everything and answers questions; OpenAI's API is served beside it.

    Parameters
    ----------
    source
        A folder of Markdown, text, HTML, PDF, docx and code; or stdlib, Python's documented modules.
    model
        smollm2, a model directory, a .gguf file, a run, or the URL of a server with OpenAI's API (which answers and is
        examined, but not trained).
    minutes
        For all of it, shared out between reading, training and the exam.
    out
        Where everything goes. One run to a directory.
    open
        Open the page in the browser.
    no_web
        No page and no server: all in the terminal, and the end when it is done.
    port
        Of the page; another is taken when this one is not free.
    seed
        Of the questions, the splits and the training.
    no_train
        Retrieve, quote and examine only.
    api_key_file
        For a URL: the first key in it is sent; without, that in DACHENG_API_KEY.
    json
        One JSON document on stdout at the end.
    """
    from dacheng.cli.adapt_face import Face
    from dacheng.cli.console import print_json, use_threads
    from dacheng.stages.adapting.kitchen import STDLIB, Kitchen
    from dacheng.stages.adapting.plan import check_minutes
    from dacheng.stages.adapting.report import write_report
    from dacheng.stages.adapting.run import Recipe, Run

    check_minutes(minutes)
    _check_source(source, out, STDLIB)
    use_threads()
    room, remote = _model(model, api_key_file)
    parts = Kitchen(source, out, room, remote=remote, encode_seconds=12 * minutes)
    parts.trains = parts.trains and not no_train
    command = shlex.join(["dacheng", *sys.argv[1:]])
    named = source if source == STDLIB else str(Path(source).resolve())
    try:
        with Run(Recipe(named, model, minutes, seed), out, parts, command=command) as run:
            run.journal.listen(Face(quiet=json))
            with _page(run, parts, room, port, open) if not no_web else contextlib.nullcontext("") as url:
                result = run.carry_out()
                write_report(out)
                run.ready(url and f"{url}/run", served=None if room is None else room.name)
                if json:
                    print_json(result)
                if no_web:
                    print(f'ask it: dacheng ask {shlex.quote(str(out))} "your question"', file=sys.stderr)
                else:
                    _wait()
    finally:
        parts.close()
    return 0


def _check_source(source: str, out: Path, stdlib: str) -> None:
    if source == stdlib:
        return
    folder = Path(source)
    if not folder.is_dir():
        raise UsageError("there is no such folder", field="SOURCE", value=source,
                         remedy=f"name a folder of documents, or {stdlib}")  # fmt: skip
    if out.resolve().is_relative_to(folder.resolve()):
        raise UsageError("the run would read its own files", field="--out", value=str(out),
                         remedy=f"name a directory outside of {source}")  # fmt: skip


def _model(name: str | None, api_key_file: Path | None) -> tuple[ModelRoom | None, LanguageModel | None]:
    """(a model in this process, one behind a URL); at most one of them."""
    if name is None:
        return None, None
    if name.startswith(("http://", "https://")):
        from dacheng.cli.serve import first_key
        from dacheng.serve.remote_model import RemoteModel

        return None, RemoteModel(name, first_key(api_key_file))
    from dacheng.cli.models import find_model
    from dacheng.stages.adapting.model_room import ModelRoom

    return ModelRoom(find_model(name), name if "/" not in name else ""), None


def _wait() -> None:
    """Until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


@contextlib.contextmanager
def _page(run: Run, parts: Any, room: ModelRoom | None, port: int, open_it: bool) -> Iterator[str]:
    """The server, on the loop that the model's engine is asked from; its URL."""
    from dacheng.cli.serve import _need_extra
    from dacheng.serve.run_server import serve_run

    _need_extra()
    with serve_run(run, parts, room, port) as url:
        print(f"the page: {url}/run", file=sys.stderr, flush=True)
        if open_it:
            import webbrowser

            webbrowser.open(f"{url}/run")
        yield url


def ask(
    store: Path,
    question: str,
    *,
    mode: str | None = None,
    model: str = "smollm2",
    json: bool = False,
) -> int:
    """Answers one question from documents, with the place it stands at.

    Example: dacheng ask runs/adapt "How do I get the size of the terminal window?"

    Parameters
    ----------
    store
        The directory of a run of adapt, or a folder of documents (which is read, and quoted from).
    question
        In the documents' language.
    mode
        adapted, sources, quote or bare; by default what won the run's exam, and quote for a folder.
    model
        For a folder, where the mode needs one.
    json
        One JSON document on stdout.
    """
    from dacheng.cli.asking import answer_once
    from dacheng.cli.console import print_json, use_threads

    if mode is not None and mode not in ("adapted", "sources", "quote", "bare"):
        raise UsageError("there is no such mode", field="--mode", value=mode, remedy="adapted, sources, quote or bare")
    use_threads()
    shown = answer_once(store, question, mode, model)
    if json:
        print_json(shown)
        return 0
    print(shown["text"])
    for citation in shown["citations"]:
        print(f"  [{citation['number']}] {citation['source']}:{citation['first_line']}  {citation['heading']}")
        print(f"      “{citation['quote']}”")
    if shown["abstained"]:
        for near in shown["nearest"]:
            print(f"  near: {near['source']}  {near['heading']}")
    return 0
