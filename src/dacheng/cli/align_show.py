"""dacheng align show: what training sees of conversations, with what is learnt in colour."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dacheng.errors import UsageError

if TYPE_CHECKING:
    from dacheng.align.show import ShownExample


def show(
    data: Path,
    *,
    model: str = "smollm2",
    layout: Literal["auto", "messages", "sharegpt", "alpaca", "seed_tasks", "prompt"] = "auto",
    learn: Literal["all", "last"] = "all",
    template: str | None = None,
    row_tokens: int | None = 512,
    n: int = 3,
    html: Path | None = None,
    json: bool = False,
) -> int:
    """Shows conversations as they are trained on: rendered, token by token, what is learnt in colour.

    Example: dacheng align show recipes/align/instructions.jsonl --model models/smollm2

    Parameters
    ----------
    data
        JSON, JSON lines or parquet, also packed: OpenAI's messages, ShareGPT, Alpaca, seed tasks, prompt and
        completion.
    model
        Whose tokenizer and chat template render them: a directory, a .gguf file, or smollm2.
    layout
        Which of these it is; auto goes by each object's fields.
    learn
        All of the assistant's turns, or the last of each conversation.
    template
        A chat template in place of the model's own: chatml, qwen, llama3, mistral, gemma or deepseek.
    row_tokens
        Of a row in training: a longer conversation is dropped.
    n
        How many are shown; the figures are of all.
    html
        Also a page, for the browser.
    json
        One JSON document on stdout.
    """
    from dacheng.align.show import overlook, show_example, write_page
    from dacheng.cli.console import print_json
    from dacheng.cli.models import find_tokenizer
    from dacheng.data.chats import read_chats
    from dacheng.formats.model_directory import load_tokenizer
    from dacheng.records import Drops
    from dacheng.text import ChatRenderer

    if n < 0:
        raise UsageError("must not be negative", field="--n", value=n, remedy="0 for the figures alone")
    renderer, drops = ChatRenderer(load_tokenizer(find_tokenizer(model)), template), Drops()
    found = (show_example(record, renderer, learn, row_tokens) for record in read_chats([data], drops, layout))
    examples, overview = overlook(found, n, drops)
    if html is not None:
        write_page(html, examples, overview, about={"data": str(data), "model": model, "learn": learn})
    if json:
        print_json({**overview.to_dict(), "shown": [example.to_dict() for example in examples]})
        return 0
    for example in examples:
        _print(example)
    print("\n".join(overview.lines()))
    if html is not None:
        print(f"the page: {html}", file=sys.stderr)
    return 0


def _print(example: ShownExample) -> None:
    """In colour on a terminal that has it; elsewhere what is learnt stands in ⟦brackets⟧."""
    from rich.console import Console
    from rich.text import Text

    from dacheng.align.show import printable

    console = Console(highlight=False, soft_wrap=True)
    coloured = console.color_system is not None
    head = f"── {example.id} · {example.learnt} of {len(example.tokens)} tokens are learnt"
    console.print(Text(printable(head + (f" · dropped: {example.dropped}" if example.dropped else "")), style="bold"))
    for note in example.notes:
        console.print(Text(printable(note), style="dim"))
    shown = Text()
    for text, learnt, special in example.pieces():
        said = printable(text)
        if learnt and not coloured:
            said = f"⟦{said}⟧"
        style = ("black on green" if learnt else "magenta") if special else "bold green" if learnt else "dim"
        shown.append(said, style=style)
    console.print(shown)
    console.print()
