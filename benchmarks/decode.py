"""Prefill and decode speed of SmolLM2 from its GGUF file, beside llama-cpp-python and transformers.

    python benchmarks/decode.py --peer-python /path/to/python [--rounds 7] [--threads 1 2] [--batches 1 4 16]

Every contestant in a process of its own, in turn, on the same token ids: a prompt of 512, then greedy tokens from there
on, one for each of `batch` texts a step. llama.cpp (and ours) run Q4_0, Q4_1 and Q8_0: the file's own format, and what
llama.cpp's own requantising makes of it. Ours also runs as plain float32 torch ("eager fp32"), and with packed products
but without the fused step ("eager packed"); transformers gets the same weights as float32.

Figures: tok/s of the prefill (one text of 512) and of decoding (all texts together), time to the first token (ms),
seconds of loading, resident memory after decoding one text, and the perplexity of each on the text of --text. A line
for each figure, our best format beside llama.cpp's best; every contestant's medians at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Run, emit, interleave
from decoders import NEW, PROMPT, Llama, Ours, Transformers

WINDOW, WINDOWS = 512, 3  # of the text of the perplexity
FORMATS = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7}  # llama.cpp's numbers of file types


def prompt_ids(vocab_size: int) -> list[int]:
    """The same everywhere; of the lower half, where no special token is after the first hundred."""
    state, ids = 12345, []
    for _ in range(PROMPT):
        state = (1103515245 * state + 12345) % 2**31
        ids.append(100 + state // 65536 % (vocab_size // 2))
    return ids


# --- a worker ---------------------------------------------------------------------------------------------------------
def measure(args: argparse.Namespace) -> dict[str, float]:
    contestant: Any = {"ours": Ours, "llama.cpp": Llama, "transformers": Transformers}[args.worker](args)
    ids = prompt_ids(contestant.vocab_size)
    result: dict[str, float] = {"load": contestant.load_s}
    contestant.start(1)
    contestant.prefill(ids[:32])  # warm: threads, caches, memory
    for batch in args.batches:
        contestant.start(batch)
        started = time.perf_counter()
        token = contestant.prefill(ids)
        first = time.perf_counter() - started
        if "prefill" not in result or result["prefill"] < PROMPT / first:
            result |= {"prefill": PROMPT / first, "first token": 1000 * first}
        contestant.copy_prompt(batch)
        tokens = [token] * batch
        seconds = []
        for _ in range(NEW):
            started = time.perf_counter()
            tokens = contestant.step(tokens)
            seconds.append(time.perf_counter() - started)
        result[f"decode {batch}"] = batch / statistics.median(seconds)
        if "resident" not in result:
            result["resident"] = resident_mb()
    if args.ids is not None:
        result["perplexity"] = perplexity(contestant, json.loads(args.ids.read_text(encoding="utf-8")))
    return result


def resident_mb() -> float:
    """Of this process now, interpreter and libraries included (Linux; elsewhere 0)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def perplexity(contestant: Any, ids: list[int]) -> float:
    import math

    import numpy

    nats, count = 0.0, 0
    for start in range(0, min(len(ids), WINDOW * WINDOWS) - WINDOW + 1, WINDOW):
        window = ids[start : start + WINDOW]
        for row, target in zip(numpy.asarray(contestant.text_logits(window)), window[1:]):
            logits = row.astype(numpy.float64)
            nats += float(logits.max() + numpy.log(numpy.exp(logits - logits.max()).sum()) - logits[target])
        count += WINDOW - 1
    return math.exp(nats / count)


# --- the measurement --------------------------------------------------------------------------------------------------
def requantize(peer: str, source: Path, target: Path, number: int) -> None:
    code = """
import ctypes, llama_cpp, sys
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype, parameters.allow_requantize = int(sys.argv[3]), True
source, target = (path.encode() for path in sys.argv[1:3])
sys.exit(llama_cpp.llama_model_quantize(source, target, ctypes.byref(parameters)))
"""
    subprocess.run([peer, "-c", code, str(source), str(target), str(number)], check=True, capture_output=True)


def prepare(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Path], Path, Path]:
    """The files by format, the directory of float32 weights, and the ids of the text."""
    from dacheng.formats.model_directory import load_model, save_model

    loaded = load_model(args.gguf)
    directory = save_model(folder / "float32", loaded.model, loaded.tokenizer, dtype="float32")
    assert loaded.tokenizer is not None
    ids = folder / "ids.json"
    ids.write_text(json.dumps(loaded.tokenizer.encode(args.text.read_text(encoding="utf-8"))[: WINDOW * WINDOWS]))
    files = {"Q4_1": args.gguf}
    for name, number in FORMATS.items():
        if name in args.formats and name not in files:
            files[name] = folder / f"{name}.gguf"
            requantize(args.peer_python, args.gguf, files[name], number)
    return {name: files[name] for name in args.formats}, directory, ids


def contestants(args: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    files, directory, ids = prepare(args, folder)
    script = str(Path(__file__).resolve())
    common = ["--ids", str(ids), "--kv", args.kv, "--batches", *map(str, args.batches)]
    found: dict[str, list[str]] = {}
    for name, path in files.items():
        found[f"ours {name}"] = [
            sys.executable,
            script,
            "--worker",
            "ours",
            "--kind",
            "fused",
            "--path",
            str(path),
            *common,
        ]
        found[f"llama.cpp {name}"] = [args.peer_python, script, "--worker", "llama.cpp", "--path", str(path), *common]
    first = str(next(iter(files.values())))
    found["ours eager packed"] = [
        sys.executable, script, "--worker", "ours", "--kind", "packed", "--path", first, *common
    ]  # fmt: skip
    found["ours eager fp32"] = [
        sys.executable, script, "--worker", "ours", "--kind", "fp32", "--path", str(directory), *common
    ]  # fmt: skip
    found["transformers fp32"] = [
        args.peer_python, script, "--worker", "transformers", "--path", str(directory), *common
    ]  # fmt: skip
    return {name: command for name, command in found.items() if any(word in name for word in args.only)}


def report(runs: dict[str, list[Run]], threads: int) -> None:
    """Ours against the best of llama.cpp's, then every contestant."""
    figures = [name for name in next(iter(runs.values()))[0].result if name != "perplexity"]

    def values(name: str, figure: str) -> list[float]:
        return [run.result[figure] for run in runs[name]]

    for figure in figures:
        higher = figure == "prefill" or figure.startswith("decode")
        best = max if higher else min
        sides = {
            side: best((n for n in runs if n.startswith(side)), key=lambda n: statistics.median(values(n, figure)))
            for side in ("ours", "llama.cpp")
            if any(name.startswith(side) for name in runs)
        }
        if len(sides) == 2:
            unit = "tok/s" if higher else {"first token": "ms", "resident": "MB"}.get(figure, "s")
            emit(
                figure, values(sides["ours"], figure), values(sides["llama.cpp"], figure), unit=unit, threads=threads,
                higher_is_better=higher, ours_is=sides["ours"], peer_is=sides["llama.cpp"],
            )  # fmt: skip
    for name, of in runs.items():
        medians = {figure: round(statistics.median(values(name, figure)), 3) for figure in of[0].result}
        memory = round(statistics.median((run.peak_bytes or 0) / 1e6 for run in of))
        print(
            json.dumps({"contestant": name, "threads": threads, "rounds": len(of), "peak_mb": memory} | medians),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--peer-python", default=os.environ.get("DACHENG_PEER_PYTHON"))
    parser.add_argument("--text", type=Path, default=Path(__file__).resolve().parent.parent / "README.md")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--only", nargs="+", default=[""], help="contestants whose names have one of these words")
    parser.add_argument("--worker", choices=("ours", "llama.cpp", "transformers"))
    parser.add_argument("--kind", choices=("fused", "packed", "fp32"))
    parser.add_argument("--kv", choices=("16", "32"), default="16", help="bits of keys and values")
    parser.add_argument("--path", type=Path)
    parser.add_argument("--ids", type=Path)
    args = parser.parse_args()
    if args.worker:
        args.threads = args.threads[0]
        print(json.dumps(measure(args)))
        return
    if args.peer_python is None:
        parser.error("name an interpreter that has llama-cpp-python and transformers: --peer-python")
    if args.gguf is None:
        from dacheng.formats.packages import MODELS, gguf_of

        args.gguf = gguf_of(MODELS["smollm2"], Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory() as folder:
        workers = contestants(args, Path(folder))
        for threads in args.threads:
            env = {name: {"OMP_NUM_THREADS": str(threads)} for name in workers}
            report(
                interleave({n: [*c, "--threads", str(threads)] for n, c in workers.items()}, args.rounds, env), threads
            )


if __name__ == "__main__":
    main()
