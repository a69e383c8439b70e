"""One model, measured in a process of its own: what it takes in memory, how well it predicts a text, how fast it is.

    python -m dacheng.compress.measure '{"model": DIR, "what": ["memory", "perplexity", "speed"], "text": FILE}'

prints one JSON object, after some of {"progress": [done, of, what]}. Memory can't be measured otherwise: what another
model left in the process would count too.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from dacheng.errors import DachengError, UsageError

WARM_TOKENS = (
    64  # what a model is asked before its memory is read: kernels make their panels, the cache its first pages
)
PREFILL, DECODE = 512, 48
_CHARACTERS = 8  # that are read for each token asked for; twice as many, and so on, where they were too few
_LARGEST_TEXT = 2**30


def measure(
    model: Path,
    what: Sequence[str],
    *,
    text: Path | None = None,
    tokens: int = 8192,
    text_bytes: float | None = None,
    window: int = 512,
    kv_dtype: str | None = None,
    choices: Path | None = None,
    tell: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> dict[str, Any]:
    """`what`: any of "memory", "perplexity", "task", "speed". Weights that are stored packed stay so where the engine
    has kernels for them, as in `dacheng serve`. Returns resident_bytes (the process), model_bytes (its growth while
    the model was loaded and used), executor, notes; windows: nats, tokens and bytes of each, text_bytes: of the text
    that they cover (given, it counts in place of `tokens`); hits: of each question; prefill, decode: tokens a second,
    median. tell(done, of, what) hears the progress. Raises DachengError naming what
    cannot be measured."""
    import torch

    threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or torch.get_num_threads()
    torch.set_num_threads(threads)
    from dacheng.engine.engine import Engine
    from dacheng.ops import native

    native.library()  # compiled once on a machine: not a part of any model
    before = resident_bytes()
    loaded = load(model)
    found: dict[str, Any] = {"threads": threads, "notes": list(getattr(loaded, "notes", []))}
    if not hasattr(loaded.model, "cache_spec"):
        return found | _encoder(loaded, what, before)
    longest = min(loaded.model.traits.longest_text, 2048)
    engine = Engine(
        loaded.model, loaded.tokenizer, max_batch=4, kv_dtype=kv_dtype, prefix_cache=False, max_context=longest,
        executor=_executor(loaded.model),
    )  # fmt: skip
    found["executor"] = engine.executor.name
    if "memory" in what:
        _generate(engine, min(WARM_TOKENS, engine.max_context // 2), 4)
        found |= {"resident_bytes": resident_bytes(), "model_bytes": resident_bytes() - before}
    if "perplexity" in what:
        assert text is not None
        asked = None if kv_dtype is None else engine
        ids, found["text_bytes"] = first_tokens(loaded.tokenizer, read_text(text), tokens, text_bytes)
        found["windows"] = window_nats(
            loaded.model, loaded.tokenizer, ids, window, asked,
            lambda done, of: tell(done, of * (1 + ("task" in what)), "perplexity"),
        )  # fmt: skip
    if "task" in what:
        assert choices is not None
        from dacheng.compress.choices import answer_choices, read_choices

        questions, hits = read_choices(choices), []
        for number, question in enumerate(questions, 1):
            hits += answer_choices(loaded.model, loaded.tokenizer, [question])
            first = len(questions) if "perplexity" in what else 0  # both are half of the way then
            tell(first + number, first + len(questions), "task")
        found["hits"] = hits
    if "speed" in what:
        longest, new = min(PREFILL, engine.max_context - 1), min(DECODE, engine.max_context // 2)
        found["prefill"] = longest / _generate(engine, longest, 1)[0]
        found["decode"] = 1 / median(_generate(engine, new // 2, new)[1:])
    return found


def load(model: Path) -> Any:
    """A decoder (directory or GGUF file) or, where the config says so, an encoder."""
    from dacheng.formats.json_files import read_json
    from dacheng.formats.loading import CONFIG, existing_directory, load_model

    if model.suffix == ".gguf":
        return load_model(model, dtype="fast", packed=True, weights_memory="small")
    from dacheng.formats.encoders import LAYOUTS, load_encoder

    config = read_json(existing_directory(model) / CONFIG)
    if any(layout.matches(config) for layout in LAYOUTS):
        return load_encoder(model)
    return load_model(model, dtype="fast", packed=True, weights_memory="small")


def _executor(model: Any) -> Any:
    from dacheng.engine.fused import FusedCPU

    return None if FusedCPU.why_not(model) else FusedCPU(model)


def _encoder(loaded: Any, what: Sequence[str], before: int) -> dict[str, Any]:
    """Vectors of texts have no perplexity: memory, and tokens a second of one text at a time."""
    import torch

    found: dict[str, Any] = {"executor": "eager"}
    longest = min(128, loaded.model.traits.longest_text)
    tokens = torch.arange(longest)[None] % loaded.model.traits.vocab_size
    seconds = []
    with torch.inference_mode():
        for _ in range(8):
            started = time.perf_counter()
            loaded.model.embed_texts(tokens, torch.tensor([longest]))
            seconds.append(time.perf_counter() - started)
    if "memory" in what:
        found |= {"resident_bytes": resident_bytes(), "model_bytes": resident_bytes() - before}
    if "speed" in what:
        found["prefill"] = longest / median(seconds[1:])
    return found


def _generate(engine: Any, prompt: int, tokens: int) -> list[float]:
    """Seconds of each step of one request: the first is the prompt's (all of its steps), then one a token."""
    from dacheng.engine.request import Request
    from dacheng.protocols import SamplingParams

    ids = [100 + (7919 * i) % max(1, engine.vocab_size // 2) for i in range(prompt)]
    ids = [i % engine.vocab_size for i in ids]
    engine.add(Request(ids, SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)))
    seconds, started = [], time.perf_counter()
    while engine.has_work:
        if any(output.token_ids for output in engine.step()):
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
    return seconds


def first_tokens(
    tokenizer: Any, text: str, tokens: int, text_bytes: float | None = None
) -> tuple[list[int], float]:  # fmt: skip
    """The first `tokens` of a text (all, where it has fewer) and the bytes of text that they stand for. text_bytes: as
    many tokens as stand for that many, so that models that cut a text differently are judged by the same part of it."""
    import numpy as np

    lengths = np.asarray(tokenizer.byte_lengths())
    read = max(1, _CHARACTERS * tokens)
    while True:
        ids = tokenizer.encode(text[:read])
        covered = np.cumsum(lengths[np.asarray(ids, np.int64)])
        enough = len(ids) >= tokens if text_bytes is None else bool(len(ids)) and covered[-1] >= text_bytes
        if enough or read >= len(text):
            break
        read *= 2
    if text_bytes is not None:  # tokens without bytes of their own may follow: `tokens` says how many of them
        least, most = (int(np.searchsorted(covered, text_bytes, side)) for side in ("left", "right"))
        tokens = min(max(tokens, least + 1), max(least + 1, most))
    ids = ids[:tokens]
    return ids, float(covered[len(ids) - 1]) if ids else 0.0


def window_nats(
    model: Any,
    tokenizer: Any,
    ids: Sequence[int],
    window: int = 512,
    engine: Any = None,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, list[float]]:
    """Nats, tokens and bytes of each stretch of `window` of the tokens, each read by itself from its first token on.
    engine: reads them through its cache, so that how keys and values are kept counts. tell(done, of): of the stretches.
    UsageError for a text of fewer than two stretches."""
    import numpy as np
    import torch

    from dacheng.evaluate.perplexity import scoring, token_nats
    from dacheng.nn.contexts import DenseCausal

    ids = list(ids)
    window = min(window, model.traits.longest_text)
    stretches = [ids[i : i + window] for i in range(0, len(ids) - 1, window)]
    stretches = [part for part in stretches if len(part) > 1]
    if len(stretches) < 2:
        raise UsageError("the text is too short for an interval", field="text", value=f"{len(ids)} tokens",
                         remedy=f"give at least {2 * window} tokens")  # fmt: skip
    lengths = np.asarray(tokenizer.byte_lengths())
    found: dict[str, list[float]] = {"nats": [], "tokens": [], "bytes": []}
    with scoring(model):
        for number, part in enumerate(stretches, 1):
            if engine is not None:
                nats = _scored(engine, part)
            else:
                row = torch.tensor([part])
                hidden = model(row[:, :-1], torch.arange(len(part) - 1)[None], DenseCausal())[0]
                nats = float(token_nats(model, hidden, row[0, 1:]).double().sum())
            found["nats"].append(nats)
            found["tokens"].append(len(part) - 1)
            found["bytes"].append(float(lengths[np.asarray(part[1:])].sum()))
            tell(number, len(stretches))
    return found


def _scored(engine: Any, ids: list[int]) -> float:
    """Through the engine and its cache, so that how keys and values are kept counts."""
    from dacheng.engine.readings import Scoring

    reading = Scoring(ids)
    engine.add(reading)
    while engine.has_work:
        engine.step()
    return -reading.nats


def read_text(path: Path) -> str:
    """UTF-8, a .gz unpacked. Raises UsageError for anything else, and for a file over a gigabyte."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                data = file.read(_LARGEST_TEXT + 1)
        else:
            with open(path, "rb") as plain:
                data = plain.read(_LARGEST_TEXT + 1)
    except (OSError, EOFError) as error:
        raise UsageError(f"the text cannot be read: {error}", field="text", value=str(path),
                         remedy="check the path") from None  # fmt: skip
    if len(data) > _LARGEST_TEXT:
        raise UsageError("the text is too long", field="text", value=str(path), remedy="give at most a gigabyte")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the text is not UTF-8: {error.reason} at byte {error.start}", field="text",
                         value=str(path), remedy="convert it to UTF-8") from None  # fmt: skip


def resident_bytes() -> int:
    """Of this process now (Linux; elsewhere its peak)."""
    from dacheng.meters import peak_bytes, return_free_memory

    return_free_memory()
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return peak_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    options = json.loads(sys.argv[1])
    for name in ("model", "text", "choices"):
        if options.get(name) is not None:
            options[name] = Path(options[name])

    def tell(done: int, of: int, what: str) -> None:
        print(json.dumps({"progress": [done, of, what]}), flush=True)

    try:
        print(json.dumps({"found": measure(**options, tell=tell)}))
    except DachengError as error:
        print(json.dumps({"error": [error.problem, error.field, str(error.value), error.remedy]}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
