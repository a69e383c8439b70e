"""Prefill and decode speed of SmolLM2 from its GGUF file, beside llama-cpp-python and transformers.

    python benchmarks/decode.py --peer-python /path/to/python [--rounds 7] [--threads 1 2] [--batches 1 4 16 32]
        [--formats Q4_0 …] [--only "llama" "ours Q4" …]

Every contestant in a process of its own, in turn, on the same token ids: a prompt of 512, then greedy tokens from there
on, one for each of `batch` texts a step. llama.cpp (and ours) run Q4_0, Q4_1 and Q8_0: the file's own format, and what
llama.cpp's own requantising makes of it. Ours also runs as plain float32 torch ("eager fp32"), and with packed products
but without the fused step ("eager packed"); transformers gets the same weights as float32.

Figures: tok/s of the prefill (one text of 512) and of decoding (all texts together), time to the first token (ms),
seconds of loading, resident memory after decoding one text, and the perplexity of each on the text of --text (once: it
is the same in every round). A line for each figure, our best format beside llama.cpp's best; "small" is ours with
weights_memory="small". "roofline": how much of the memory's measured speed (bandwidth.py, at as many bytes) the reading
of the weights takes at batch 1. Every contestant's medians at the end. A worker that fails is shown and left out of its
round; then the exit status is 1.
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

from bandwidth import read_speed
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
    if args.ids is not None:
        return {"perplexity": perplexity(contestant, json.loads(args.ids.read_text(encoding="utf-8")))}
    ids = prompt_ids(contestant.vocab_size)
    result: dict[str, float] = {"load": contestant.load_s}
    if args.kind == "fused":
        result["weights"] = contestant.weight_bytes() / 1e6
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


def contestants(args: argparse.Namespace, files: dict[str, Path], directory: Path) -> dict[str, list[str]]:
    script = str(Path(__file__).resolve())
    batches = ["--kv", args.kv, "--batches", *map(str, args.batches)]

    def ours(kind: str, path: Path, *more: str) -> list[str]:
        return [sys.executable, script, "--worker", "ours", "--kind", kind, "--path", str(path), *batches, *more]

    def peer(name: str, path: Path) -> list[str]:
        return [args.peer_python, script, "--worker", name, "--path", str(path), *batches]

    found: dict[str, list[str]] = {}
    for name, path in files.items():
        found[f"ours {name}"] = ours("fused", path)
        found[f"ours {name} small"] = [*ours("fused", path, "--memory", "small"), "--batches", "1"]
        found[f"llama.cpp {name}"] = peer("llama.cpp", path)
    found["ours eager packed"] = ours("packed", next(iter(files.values())))
    found["ours eager fp32"] = ours("fp32", directory)
    found["transformers fp32"] = peer("transformers", directory)
    return {name: command for name, command in found.items() if any(word in name for word in args.only)}


UNITS = {"first token": "ms", "resident": "MB", "load": "s"}


def report(runs: dict[str, list[Run]], threads: int) -> None:
    """Ours against the best of llama.cpp's, figure by figure, then the roofline, then every contestant."""

    def values(name: str, figure: str) -> dict[int, float]:
        return {i: run.result[figure] for i, run in enumerate(runs[name]) if figure in run.result}

    def median(name: str, figure: str) -> float:
        return statistics.median(values(name, figure).values())

    def line(figure: str, called: str, side: list[str], peers: list[str]) -> None:
        higher = figure not in UNITS
        best = max if higher else min
        side, peers = ([name for name in names if values(name, figure)] for names in (side, peers))
        if not side or not peers:
            return
        one, other = (best(names, key=lambda name: median(name, figure)) for names in (side, peers))
        both = sorted(values(one, figure).keys() & values(other, figure).keys())  # rounds in which neither failed
        if both:
            emit(
                called, [values(one, figure)[i] for i in both], [values(other, figure)[i] for i in both],
                unit=UNITS.get(figure, "tok/s"), threads=threads, higher_is_better=higher, ours_is=one, peer_is=other,
            )  # fmt: skip

    figures = list(dict.fromkeys(figure for of in runs.values() for run in of for figure in run.result))
    small = [name for name in runs if name.endswith(" small")]
    ours = [name for name in runs if name.startswith("ours") and name not in small]
    peers = [name for name in runs if name.startswith("llama.cpp")]
    for figure in figures:
        if figure != "weights":
            line(figure, figure, ours, peers)
            if figure in ("load", "resident", "decode 1"):
                line(figure, f"{figure} small", small, peers)
    for name in ours:
        if values(name, "weights") and values(name, "decode 1"):
            roofline(name, median(name, "weights"), median(name, "decode 1"), threads)
    for name, of in runs.items():
        medians = {figure: round(median(name, figure), 3) for figure in figures if values(name, figure)}
        memory = round(statistics.median([(run.peak_bytes or 0) / 1e6 for run in of if not run.failed] or [0.0]))
        failed = sum(1 for run in of if run.failed)
        head = {"contestant": name, "threads": threads, "rounds": len(of), "failed": failed, "peak_mb": memory}
        print(json.dumps(head | medians), flush=True)


def roofline(name: str, megabytes: float, tokens: float, threads: int) -> None:
    """At batch 1 every weight is read for one token: tokens a second times bytes, of what the memory can deliver."""
    speed = read_speed(megabytes, threads) / 1e9
    taken = tokens * megabytes / 1e3
    print(json.dumps({
        "figure": "roofline", "contestant": name, "threads": threads, "weights_mb": round(megabytes, 1),
        "read_gb_s": round(speed, 1), "decode_gb_s": round(taken, 1), "share": round(taken / speed, 3),
    }), flush=True)  # fmt: skip


def report_perplexity(workers: dict[str, list[str]], ids: Path, env: dict[str, dict[str, str]]) -> bool:
    """One worker after another; whether all of them came to an end."""
    commands = {name: [*command, "--ids", str(ids)] for name, command in workers.items() if not name.endswith("small")}
    runs = interleave(commands, 1, env, keep_going=True)
    found = {name: round(run.result["perplexity"], 3) for name, (run,) in runs.items() if not run.failed}
    print(json.dumps({"figure": "perplexity", **found}), flush=True)
    return len(found) == len(runs)


def compare(args: argparse.Namespace) -> bool:
    """Whether no worker failed."""
    with tempfile.TemporaryDirectory() as folder:
        files, directory, ids = prepare(args, Path(folder))
        workers = contestants(args, files, directory)
        sound = True
        if not args.no_perplexity:
            most = str(max(args.threads))
            env = {name: {"OMP_NUM_THREADS": most} for name in workers}
            sound = report_perplexity({n: [*c, "--threads", most] for n, c in workers.items()}, ids, env)
        for threads in args.threads:
            env = {name: {"OMP_NUM_THREADS": str(threads)} for name in workers}
            commands = {name: [*command, "--threads", str(threads)] for name, command in workers.items()}
            runs = interleave(commands, args.rounds, env, keep_going=True)
            report(runs, threads)
            sound = sound and not any(run.failed for of in runs.values() for run in of)
    return sound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--peer-python", default=os.environ.get("DACHENG_PEER_PYTHON"))
    parser.add_argument("--text", type=Path, default=Path(__file__).resolve().parent.parent / "README.md")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--only", nargs="+", default=[""], help="contestants whose names have one of these words")
    parser.add_argument("--worker", choices=("ours", "llama.cpp", "transformers"))
    parser.add_argument("--kind", choices=("fused", "packed", "fp32"))
    parser.add_argument("--kv", choices=("16", "32"), default="16", help="bits of keys and values")
    parser.add_argument("--memory", choices=("fast", "small"), default="fast", help="of packed weights")
    parser.add_argument("--no-perplexity", action="store_true")
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
    sys.exit(0 if compare(args) else 1)


if __name__ == "__main__":
    main()
