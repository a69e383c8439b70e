"""Compressed models in our engine beside floats and beside llama.cpp's own quantisations: memory, speed, perplexity.

    python benchmarks/compressed.py --peer-python /path/to/python --text wikitext2/valid.txt.gz --work runs/compressed
        [--gguf model.gguf] [--rounds 3] [--threads 1] [--bf16]

SmolLM2-135M. Ours: int8 (a scale a row, rounded to nearest), int8 by SmoothQuant, int4 by GPTQ in groups of 64, each a
directory made by dacheng.compress (embedding int8 in groups of 32), kept in --work for the next time; and float32 (with
--bf16 also bfloat16, for machines that have it: elsewhere it is emulated and takes an hour). llama.cpp: Q8_0, Q4_0 and
Q4_1 of its own requantiser; the file itself is Q4_1. Every contestant in a process of its own, in turn; workers are
those of benchmarks/decode.py: a prompt of 512, then 16 tokens one at a time. `resident` is the process's memory after
decoding (MB, interpreter and libraries included), `disk` the weights' (MB); perplexity is of 3 stretches of 512.
One line a contestant, then one for each of ours with the ratio to llama.cpp at as many bits and to our floats (over 1 =
the compressed one is better).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import Run, emit, interleave
from decode import FORMATS, WINDOW, WINDOWS, requantize

OURS = {"int8": ("rtn", "8"), "int8 smooth": ("smoothquant", "8"), "int4": ("gptq", "4g64")}
PEERS = {
    "int8": ("llama.cpp Q8_0", "float32", "bfloat16"), "int8 smooth": ("llama.cpp Q8_0", "float32", "bfloat16"),
    "int4": ("llama.cpp Q4_0", "float32", "bfloat16"),
}  # fmt: skip
FIGURES = {"prefill": "tok/s", "decode 1": "tok/s", "resident": "MB", "disk": "MB", "perplexity": ""}
DECODE = str(Path(__file__).resolve().parent / "decode.py")


def prepare(args: argparse.Namespace) -> dict[str, Path]:
    """The models by name; those that are there already stay."""
    from dacheng.compress.calibrate import calibration_batches
    from dacheng.compress.measure import read_text
    from dacheng.compress.quantize.config import QuantizeConfig
    from dacheng.compress.quantize.model import quantize_model
    from dacheng.formats.loading import load_model
    from dacheng.formats.model_directory import save_model
    from dacheng.ops.integers import QSpec

    args.work.mkdir(parents=True, exist_ok=True)
    text, found = read_text(args.text), {}
    for name, (method, spec) in OURS.items():
        found[name] = args.work / name.replace(" ", "-")
        if not (found[name] / "config.json").exists():
            loaded = load_model(args.gguf, dtype="float32")
            ids = loaded.tokenizer.encode(text[len(text) // 2 :])
            config = QuantizeConfig(method, QSpec.parse(spec), QSpec(8, 32))
            batches = calibration_batches(ids, rows=args.rows, length=512) if config.calibrated else []
            done = quantize_model(loaded.model, config, batches)
            save_model(found[name], loaded.model, loaded.tokenizer, packed=done.weights, quantization=config.to_dict())
    for dtype in ("float32", *(["bfloat16"] if args.bf16 else [])):
        found[dtype] = args.work / dtype
        if not (found[dtype] / "config.json").exists():
            loaded = load_model(args.gguf)
            save_model(found[dtype], loaded.model, loaded.tokenizer, dtype=dtype)
    ids = loaded_ids(args.gguf, text)
    (args.work / "ids.json").write_text(json.dumps(ids))
    for name, number in FORMATS.items():
        found[f"llama.cpp {name}"] = args.gguf if name == "Q4_1" else args.work / f"{name}.gguf"
        if not found[f"llama.cpp {name}"].exists():
            requantize(args.peer_python, args.gguf, found[f"llama.cpp {name}"], number)
    return found


def loaded_ids(path: Path, text: str) -> list[int]:
    from dacheng.formats.loading import load_tokenizer

    return load_tokenizer(path).encode(text[: WINDOW * WINDOWS * 8])[: WINDOW * WINDOWS]


def commands(args: argparse.Namespace, models: dict[str, Path]) -> dict[str, list[str]]:
    shared = ["--kv", "16", "--batches", "1", "--threads", str(args.threads)]
    found = {}
    for name, path in models.items():
        worker = ["--path", str(path), *shared]
        if name.startswith("llama.cpp"):
            found[name] = [args.peer_python, DECODE, "--worker", "llama.cpp", *worker]
        else:
            kind = "fused" if name in OURS else "fp32"
            found[name] = [sys.executable, DECODE, "--worker", "ours", "--kind", kind, "--memory", "small", *worker]
    return found


def disk(path: Path) -> float:
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16, help="of 512 tokens, that calibrate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    if args.gguf is None:
        from dacheng.formats.packages import MODELS, gguf_of

        args.gguf = gguf_of(MODELS["smollm2"], Path(tempfile.gettempdir()))
    models = prepare(args)
    env = {name: {"OMP_NUM_THREADS": str(args.threads)} for name in models}
    work = commands(args, models)
    scored = interleave(
        {n: [*c, "--ids", str(args.work / "ids.json")] for n, c in work.items()}, 1, env, keep_going=True
    )
    runs = interleave(work, args.rounds, env, keep_going=True)
    report(models, scored, runs, args.threads)


def report(models: dict[str, Path], scored: dict[str, list[Run]], runs: dict[str, list[Run]], threads: int) -> None:
    values: dict[str, dict[str, list[float]]] = {}
    for name, of in runs.items():
        good = [run.result for run in of if not run.failed]
        one = {figure: [r[figure] for r in good if figure in r] for figure in ("prefill", "decode 1", "resident")}
        one["disk"] = [disk(models[name])]
        one["perplexity"] = [run.result["perplexity"] for run in scored[name] if not run.failed]
        values[name] = {figure: found for figure, found in one.items() if found}
        medians: dict[str, Any] = {figure: round(statistics.median(v), 2) for figure, v in values[name].items()}
        print(json.dumps({"contestant": name, "threads": threads, "rounds": len(good), **medians}), flush=True)
    for name, peer in ((name, peer) for name, peers in PEERS.items() for peer in peers):
        for figure, unit in FIGURES.items():
            one, other = values.get(name, {}).get(figure), values.get(peer, {}).get(figure)
            if one and other and len(one) == len(other):
                emit(
                    f"{figure} of {name}", one, other, unit=unit, threads=threads,
                    higher_is_better=unit == "tok/s", ours_is=f"ours {name}", peer_is=peer,
                )  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
