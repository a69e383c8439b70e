"""dacheng eval: how well a model predicts a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from dacheng.errors import UsageError

app = App(name="eval", help="How well a model predicts a text: bits per byte and perplexity.")


@app.command
def run(
    *,
    model: str,
    perplexity: list[Path],
    context_length: int | None = None,
    stride: int | None = None,
    batch: int = 8,
    json: bool = False,
) -> int:
    """Scores every token of a text once and prints bits per byte and perplexity.

    Example: dacheng eval run --model quickstart --perplexity text.txt --json

    Parameters
    ----------
    model
        A model directory, the directory of a run, or the name of a run (dacheng history).
    perplexity
        A text file (UTF-8), one document; may be given several times.
    context_length
        Tokens of a window; as many as the model has positions, up to 2048, when left out.
    stride
        New tokens scored in each further window; half a window when left out. Smaller is slower, with more context.
    batch
        Windows scored at once.
    json
        One JSON document on stdout.
    """
    from dacheng.cli.models import find_model

    directory, texts = find_model(model), [_text(path) for path in perplexity]
    from dacheng.cli.console import print_json, reporter, use_threads
    from dacheng.evaluate.perplexity import LONGEST_WINDOW, evaluate_text
    from dacheng.formats.model_directory import load_model

    use_threads()
    loaded = load_model(directory, dtype="fast")
    if loaded.tokenizer is None:
        remedy = "copy tokenizer.json there"
        raise UsageError("this model has no tokenizer", field="--model", value=str(directory), remedy=remedy)
    with reporter().task("scoring", unit="tok") as task:
        found = evaluate_text(
            loaded.model,
            loaded.tokenizer,
            texts,
            context_length=context_length or min(loaded.model.traits.longest_text, LONGEST_WINDOW),
            stride=stride,
            batch=batch,
            progress=task.update,
        )
    if json:
        print_json({"model": str(directory), "texts": [str(path) for path in perplexity], **found})
    else:
        print("\n".join(_lines(found)))
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"the text is not UTF-8: {error.reason} at byte {error.start}"
        raise UsageError(problem, field="--perplexity", value=str(path), remedy="convert it to UTF-8") from None
    except OSError as error:
        problem = f"the text cannot be read: {error.strerror}"
        raise UsageError(problem, field="--perplexity", value=str(path), remedy="check the path") from None


def _lines(found: dict[str, Any]) -> list[str]:
    spread = ""
    if "bits_per_byte_low" in found:
        spread = f"  [{found['bits_per_byte_low']:.4f}, {found['bits_per_byte_high']:.4f}] over documents"
    return [
        f"bits per byte  {found['bits_per_byte']:.4f}{spread}",
        f"perplexity     {found['perplexity']:.3f} per token",
        f"on             {found['tokens']:,} tokens, {found['bytes']:,} bytes, {found['documents']:,} documents",
    ]
