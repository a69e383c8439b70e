"""Clean, tokenize and pack: MB/s of text and peak memory, beside `datasets.map` with the same tokenizer.

    python benchmarks/prepare.py --peer-python /path/to/python        # an interpreter with datasets and tokenizers
    python benchmarks/prepare.py --rounds 3 --megabytes 3             # shorter; without a peer, only our own figures

Both read the same JSON lines (the running interpreter's library) and end with packed rows on disk, in a fresh process
each time; the clock starts after the imports. Both normalise line ends, remove control characters, drop exact
duplicates and empty texts, and append EOS, and must come to the same number of tokens. The peer then concatenates and
cuts (the `group_texts` of the transformers examples: no document boundaries, the last partial block of each batch is
dropped), while ours also splits by hash, fsyncs, hashes what it writes, and packs best-fit. The peer runs in one
process (the tokenizer's own threads) and with one process a core; the faster of the two is the one to compare with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import emit, interleave

EOS, PAD = "<|endoftext|>", "<|pad|>"


def cpu_seconds() -> float:
    """Of this process and its children that have ended: what the work took, however busy the machine was."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


# --- workers ----------------------------------------------------------------------------------------------------------
def work_ours(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from dacheng import recipes
    from dacheng.data.prepare import PrepareConfig, prepare, tokenize
    from dacheng.text import Tokenizer

    tokenizer = Tokenizer.load(args.tokenizer)
    config = recipes.load(PrepareConfig, {"source": str(args.corpus), "split": {"valid_fraction": 0.02}})
    cpu, started = cpu_seconds(), time.perf_counter()
    store = prepare(config, folder / "docs")
    prepared = time.perf_counter()
    corpus = tokenize(store, tokenizer, folder / "tokens", args.context_length)
    ended = time.perf_counter()
    train = corpus.entry("train")
    return {
        "seconds": ended - started,
        "cpu_seconds": cpu_seconds() - cpu,
        "prepare_seconds": prepared - started,
        "tokens": sum(corpus.entry(split)["tokens"] for split in corpus.splits),
        "fill_rate": train["packing"]["fill_rate"],
        "bytes_per_token": train["bytes_per_token"],
    }


def work_peer(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import datasets
    from tokenizers import Tokenizer

    datasets.disable_progress_bars()
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    eos, length = tokenizer.token_to_id(EOS), args.context_length
    control, seen = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffe\uffff]"), set()

    def clean(batch: dict[str, list[str]]) -> dict[str, list[str]]:
        return {"text": [control.sub("", re.sub("\r\n?", "\n", text)) for text in batch["text"]]}

    def is_new(text: str) -> bool:
        key = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
        new = key not in seen and bool(text.strip())
        seen.add(key)
        return new

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"input_ids": [[*one.ids, eos] for one in encoded]}

    def group(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        together = [token for ids in batch["input_ids"] for token in ids]
        total = len(together) // length * length
        blocks = [together[i : i + length] for i in range(0, total, length)]
        return {"input_ids": blocks, "labels": [list(block) for block in blocks]}

    processes = args.processes if args.processes > 1 else None
    cpu, started = cpu_seconds(), time.perf_counter()
    data = datasets.load_dataset("json", data_files=str(args.corpus), split="train", cache_dir=str(folder))
    data = data.map(
        clean, batched=True, num_proc=processes, remove_columns=[c for c in data.column_names if c != "text"]
    )
    data = data.filter(is_new, input_columns="text")  # one process: it remembers what it has seen
    data = data.map(encode, batched=True, num_proc=processes, remove_columns=data.column_names)
    rows = data.map(group, batched=True, num_proc=processes)
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    tokens = sum(map(len, data["input_ids"]))
    return {"seconds": seconds, "cpu_seconds": cpu, "tokens": tokens, "dropped_tokens": tokens - len(rows) * length}


# --- the measurement --------------------------------------------------------------------------------------------------
def make_inputs(folder: Path, megabytes: float, vocab_size: int) -> tuple[Path, Path, int]:
    """(corpus of JSON lines, tokenizer directory, bytes of text): the same for both."""
    from dacheng.data.sources import open_source
    from dacheng.records import Drops
    from dacheng.text import train_tokenizer

    texts, size = [], 0
    for record in open_source("python-stdlib", Drops()):
        if megabytes and size >= megabytes * 1e6:
            break
        texts.append(record.text or "")
        size += len(texts[-1].encode("utf-8"))
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    train_tokenizer(texts, "bpe", vocab_size=vocab_size).save(folder / "tokenizer")
    return corpus, folder / "tokenizer", size


def measure(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="dacheng-prepare-") as temporary:
        corpus, tokenizer, size = make_inputs(Path(temporary), args.megabytes, args.vocab_size)
        common = ["--corpus", str(corpus), "--tokenizer", str(tokenizer), "--context-length", str(args.context_length)]

        def command(python: str, worker: str, *more: str) -> list[str]:
            return [python, str(Path(__file__).resolve()), "--worker", worker, *common, *more]

        workers = {"ours": command(sys.executable, "ours")}
        if args.peer_python:
            for processes in sorted({1, args.threads}):
                workers[f"peer x{processes}"] = command(args.peer_python, "peer", "--processes", str(processes))
        settings = {"RAYON_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "true"}
        settings |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
        runs = interleave(workers, args.rounds, dict.fromkeys(workers, settings))
    report(runs, size, args)


def report(runs: dict[str, Any], size: int, args: argparse.Namespace) -> None:
    speed = {name: [size / 1e6 / run.result["seconds"] for run in of] for name, of in runs.items()}
    memory = {name: [(run.peak_bytes or 0) / 1e6 for run in of] for name, of in runs.items()}
    tokens = {name: of[0].result["tokens"] for name, of in runs.items()}
    if len(set(tokens.values())) != 1:
        raise SystemExit(f"the workers disagree on the number of tokens: {tokens}")
    peers = sorted(
        (name for name in runs if name != "ours"), key=lambda name: -sorted(speed[name])[len(speed[name]) // 2]
    )
    peer = peers[0] if peers else None
    ours = runs["ours"][0].result
    extra = {
        "megabytes": round(size / 1e6, 2), "tokens": tokens["ours"], "bytes_per_token": ours["bytes_per_token"],
        "fill_rate": ours["fill_rate"],
    }  # fmt: skip
    if peer is not None:
        extra["peer_variant"] = f"datasets.map, {peer.split('x')[-1]} process(es)"
        extra["peer_dropped_tokens"] = runs[peer][0].result["dropped_tokens"]
    threads = args.threads
    emit("clean + tokenize + pack", speed["ours"], peer and speed[peer], unit="MB/s", threads=threads, **extra)
    emit(
        "clean + tokenize + pack, peak memory", memory["ours"], peer and memory[peer], unit="MB", threads=threads,
        higher_is_better=False,
    )  # fmt: skip
    cpu = {name: [size / 1e6 / run.result["cpu_seconds"] for run in of] for name, of in runs.items()}
    emit("clean + tokenize + pack, by CPU time", cpu["ours"], peer and cpu[peer], unit="MB/CPU-s", threads=threads)
    cleaning = [size / 1e6 / run.result["prepare_seconds"] for run in runs["ours"]]
    emit("clean + deduplicate + split", cleaning, None, unit="MB/s", threads=threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer-python", default=os.environ.get("DACHENG_PEER_PYTHON"), help="interpreter with datasets"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=float, default=0, help="take only so much text (0: all)")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--context-length", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worker", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is None:
        measure(args)
        return
    with tempfile.TemporaryDirectory(prefix="dacheng-prepare-") as folder:
        result = {"ours": work_ours, "peer": work_peer}[args.worker](args, Path(folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
