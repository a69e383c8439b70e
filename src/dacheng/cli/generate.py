"""dacheng generate: continue a prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from dacheng.errors import UsageError

if TYPE_CHECKING:
    from dacheng.engine.engine import Engine
    from dacheng.protocols import Completion, SamplingParams


def generate(
    *,
    model: str,
    prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    prompt_file: Path | None = None,
    max_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = (),
    n: int = 1,
    speculate: int = 0,
    draft_model: str | None = None,
    kv_dtype: Literal["float32", "bfloat16", "int8"] | None = None,
    deterministic: bool = False,
    adapter: Path | None = None,
    json: bool = False,
) -> int:
    """Continues a prompt, and prints the continuation as it comes.

    Example: dacheng generate --model quickstart --prompt "def main(" --max-tokens 64 --temperature 0

    Parameters
    ----------
    model
        A model directory, the directory of a run, or the name of a run (dacheng history).
    prompt
        The text to continue; "-" reads it from standard input.
    prompt_file
        A file with the text to continue.
    max_tokens
        Tokens to write at most.
    temperature
        0 always takes the most likely token.
    top_k
        Sample among the k most likely tokens; 0 for all.
    top_p
        Sample among the fewest tokens that have this probability together.
    min_p
        Leave out tokens less likely than this share of the most likely one.
    repetition_penalty
        Above 1 makes tokens that were there less likely.
    seed
        Makes sampling repeatable.
    stop
        A string that ends the text; may be given several times.
    n
        How many continuations.
    speculate
        Tokens guessed at a time, while that pays: looked up in the text, or by --draft-model. The same text, sooner.
    draft_model
        A small model with the same vocabulary, that guesses.
    kv_dtype
        How keys and values are kept: as the weights by default; int8 takes a quarter of float32.
    deterministic
        The same text to the bit, however it is computed; slower.
    adapter
        A directory with a LoRA adapter of this model, as PEFT or dacheng train write it.
    json
        One JSON document on stdout.
    """
    from dacheng.cli.models import find_model

    text = _prompt(prompt, prompt_file)
    if n < 1:
        raise UsageError("at least one continuation", field="--n", value=n, remedy="--n 1")
    if draft_model is not None and speculate < 1:
        raise UsageError("a draft model guesses nothing", field="--speculate", value=speculate, remedy="--speculate 4")
    directory = find_model(model)
    draft_directory = None if draft_model is None else find_model(draft_model)

    from dacheng.cli.console import print_json, use_threads
    from dacheng.engine.engine import Engine
    from dacheng.formats.draft import load_draft
    from dacheng.formats.model_directory import load_model
    from dacheng.formats.packed import is_packed
    from dacheng.protocols import SamplingParams

    use_threads()
    loaded = load_model(directory, dtype="fast", packed=directory.is_dir() and is_packed(directory))
    for note in loaded.notes:
        print(note, file=sys.stderr)
    if adapter is not None:
        from dacheng.adapt import attach, rows_of
        from dacheng.formats.peft import read_adapter

        rows_of(loaded.model, make=True).default = attach(loaded.model, read_adapter(adapter, loaded.model))
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
    )
    draft = None if draft_directory is None else load_draft(draft_directory, loaded)
    engine = Engine(
        loaded.model, loaded.tokenizer, speculate=speculate, draft=draft, kv_dtype=kv_dtype, deterministic=deterministic
    )
    if not json and n == 1:
        _stream(engine, text, params)
        return 0
    completions = engine.generate([text] * n, [_seeded(params, i) for i in range(n)])
    if json:
        print_json({"model": str(directory), "prompt": text, "completions": [_plain(c) for c in completions]})
    else:
        print("\n---\n".join(completion.text for completion in completions))
    return 0


def _prompt(prompt: str | None, prompt_file: Path | None) -> str:
    if (prompt is None) == (prompt_file is None):
        raise UsageError(
            "one prompt is needed", field="--prompt", value=prompt, remedy="--prompt TEXT or --prompt-file FILE"
        )
    if prompt_file is not None:
        return prompt_file.read_text(encoding="utf-8")
    return sys.stdin.read() if prompt == "-" else str(prompt)


def _seeded(params: SamplingParams, index: int) -> SamplingParams:
    """The same request with a seed of its own, so that n continuations differ and yet repeat."""
    from dataclasses import replace

    return params if params.seed is None else replace(params, seed=params.seed + index)


def _stream(engine: Engine, prompt: str, params: SamplingParams) -> None:
    for piece in engine.stream(prompt, params):
        print(piece, end="", flush=True)
    print()


def _plain(completion: Completion) -> dict[str, Any]:
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": len(completion.prompt_token_ids),
        "completion_tokens": len(completion.token_ids),
        "metrics": completion.metrics,
    }
