"""Indexing and searching passages: MB/s and query times, beside bm25s (words) and faiss (vectors).

    python benchmarks/rag.py --peer-python /path/to/python                  # one with bm25s, faiss-cpu and numpy
    python benchmarks/rag.py --sizes 1000 100000 1000000 --rounds 3         # a million: 10 GB of disk, 8 GB of memory

Words: Markdown files of a hundred sections each, of words drawn by Zipf's law. Ours reads the folder, splits it into
passages and writes one SQLite file, which then answers from the disk; bm25s reads the same files, is given a section as
a document, and keeps its index in memory ("index" ends when it answers; ours is durable by then). Queries are four
words of one section, none of the hundred most frequent: those stand for stop words, which both leave out of English.
Vectors: 384 numbers around a thousand centres, float32; the peer's flat index is exact as ours, --hnsw adds its
approximate one (slow to build, so no further than 100,000). Each worker is a fresh process.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Run, emit, interleave

WIDTH, CENTRES, K, QUERIES = 384, 1000, 10, 200
SECTIONS, WORDS, VOCABULARY = 100, 75, 50_000  # sections of a file, words of one, different words
FREQUENT = 100  # words that no query has
HNSW_MOST = 100_000


# --- what is indexed --------------------------------------------------------------------------------------------------
def vocabulary() -> list[str]:
    """Words, the most frequent first."""
    draw, letters = random.Random(0), "etaoinshrdlucmfw"
    words = sorted({"".join(draw.choices(letters, k=draw.randint(3, 9))) for _ in range(VOCABULARY)})
    draw.shuffle(words)
    return words


def write_corpus(folder: Path, size: int) -> int:
    """Files with `size` sections in all, the same every time. Returns their bytes."""
    draw, words = random.Random(size), vocabulary()
    weights, total = [], 0.0
    for rank in range(1, len(words) + 1):
        total += 1 / rank
        weights.append(total)
    written = 0
    for number, start in enumerate(range(0, size, SECTIONS)):
        parts = []
        for i in range(start, min(start + SECTIONS, size)):
            body = draw.choices(words, cum_weights=weights, k=WORDS)
            parts.append(f"# Section {i}\n\n{' '.join(body)}.\n")
        text = "\n".join(parts).encode()
        (folder / f"{number:06}.md").write_bytes(text)
        written += len(text)
    return written


def sections(folder: Path) -> list[str]:
    return ["# " + part for file in sorted(folder.glob("*.md")) for part in file.read_text().split("# ")[1:]]


def queries(folder: Path) -> list[str]:
    """Four words of a section each."""
    draw, files = random.Random(1), sorted(folder.glob("*.md"))
    frequent, found = set(vocabulary()[:FREQUENT]), []
    for _ in range(QUERIES):
        part = draw.choice(draw.choice(files).read_text().split("# ")[1:])
        words = [word for word in part.replace(".", "").split()[2:] if word not in frequent]
        found.append(" ".join(draw.sample(words, 4)))
    return found


def vectors(size: int) -> tuple[Any, Any]:
    """Rows (size, 384) and queries (200, 384), float32, of length 1."""
    import numpy as np

    generator = np.random.default_rng(size)
    centres = generator.standard_normal((CENTRES, WIDTH), dtype=np.float32)
    rows = np.empty((size, WIDTH), dtype=np.float32)
    for start in range(0, size, 50_000):
        part = rows[start : start + 50_000]
        generator.standard_normal(out=part, dtype=np.float32)
        part += centres[generator.integers(0, CENTRES, len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    asked = rows[generator.integers(0, size, QUERIES)]
    asked = asked + 0.04 * generator.standard_normal(asked.shape, dtype=np.float32)
    return rows, asked / np.linalg.norm(asked, axis=1, keepdims=True)


def timed(call: Any, items: Any) -> dict[str, float]:
    """Median and 95th percentile of a call's milliseconds, after ten calls that do not count."""
    for item in list(items)[:10]:
        call(item)
    times = []
    for item in items:
        started = time.perf_counter()
        call(item)
        times.append(1e3 * (time.perf_counter() - started))
    times.sort()
    return {"p50": times[len(times) // 2], "p95": times[int(len(times) * 0.95)]}


# --- workers ----------------------------------------------------------------------------------------------------------
def work_words_ours(folder: Path) -> dict[str, Any]:
    from dacheng.rag.retrieve import Retriever
    from dacheng.rag.store import PassageStore

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        path = Path(scratch) / "s.db"
        store = PassageStore.open(path, create=True)
        started = time.perf_counter()
        report = store.sync(folder)
        seconds = time.perf_counter() - started
        retriever = Retriever(store)
        found = timed(lambda query: retriever.search(query, K, "bm25"), queries(folder))
        disk = sum(file.stat().st_size for file in Path(scratch).iterdir())
        return found | {"index_s": seconds, "passages": report.passages, "disk": disk}


def work_words_peer(folder: Path) -> dict[str, Any]:
    import bm25s

    started = time.perf_counter()
    texts = sections(folder)
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    seconds = time.perf_counter() - started

    def search(query: str) -> Any:
        tokens = bm25s.tokenize(query, stopwords="en", show_progress=False)
        return index.retrieve(tokens, k=min(K, len(texts)), show_progress=False)

    return timed(search, queries(folder)) | {"index_s": seconds, "passages": len(texts)}


def work_vectors_ours(size: int, threads: int) -> dict[str, Any]:
    import torch

    from dacheng.rag.vectors import VectorIndex

    torch.set_num_threads(threads)
    rows, asked = (torch.from_numpy(part) for part in vectors(size))
    started = time.perf_counter()
    index = VectorIndex(torch.arange(size), rows)
    seconds = time.perf_counter() - started
    found = timed(lambda query: index.search(query[None], K), list(asked))
    first = [number for hits in index.search(asked, K) for number, _ in hits]
    return found | {"index_s": seconds, "held": index.nbytes, "found": first}


def work_vectors_peer(size: int, threads: int, kind: str) -> dict[str, Any]:
    import faiss

    faiss.omp_set_num_threads(threads)
    rows, asked = vectors(size)
    started = time.perf_counter()
    flat = kind == "flat"
    index = faiss.IndexFlatIP(WIDTH) if flat else faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT)
    index.add(rows)
    seconds = time.perf_counter() - started
    held = rows.nbytes
    del rows
    if not flat:
        index.hnsw.efSearch = 64
    found = timed(lambda query: index.search(query[None], K), list(asked))
    first = index.search(asked, K)[1].ravel().tolist()
    return found | {"index_s": seconds, "held": held, "found": first}


# --- the measurement --------------------------------------------------------------------------------------------------
def report(what: str, ours: list[Run], peer: list[Run] | None, unit_count: float, threads: int, **extra: Any) -> None:
    def values(runs: list[Run] | None, key: str) -> list[float] | None:
        return None if runs is None else [run.result[key] for run in runs]

    def rate(runs: list[Run] | None) -> list[float] | None:
        return None if runs is None else [unit_count / run.result["index_s"] for run in runs]

    unit = "MB/s" if what.startswith("words") else "1000 vectors/s"
    emit(f"{what} index", rate(ours) or [], rate(peer), unit=unit, threads=threads, **extra)
    for key in ("p50", "p95"):
        emit(f"{what} {key}", values(ours, key) or [], values(peer, key), unit="ms", threads=threads,
             higher_is_better=False, **extra)  # fmt: skip
    ours_mb = [(run.peak_bytes or 0) / 1e6 for run in ours]
    peer_mb = None if peer is None else [(run.peak_bytes or 0) / 1e6 for run in peer]
    emit(f"{what} peak memory", ours_mb, peer_mb, unit="MB", threads=threads, higher_is_better=False, **extra)


def overlap(ours: Run, peer: Run) -> float:
    """Share of the peer's ten nearest that are ours too."""
    one, other = ours.result["found"], peer.result["found"]
    width = len(one) // QUERIES
    rows = range(0, len(one), width)
    return sum(len(set(one[i : i + width]) & set(other[i : i + width])) for i in rows) / len(one)


def compare(args: argparse.Namespace, size: int) -> None:
    script, threads = str(Path(__file__).resolve()), str(args.threads)
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)

    def commands(kinds: dict[str, list[str]]) -> dict[str, list[str]]:
        chosen = {name: sys.executable if name == "ours" else args.peer_python for name in kinds}
        return {
            name: [chosen[name], script, "--threads", threads, *rest] for name, rest in kinds.items() if chosen[name]
        }

    if "words" in args.what:
        with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
            folder = Path(scratch) / "corpus"
            folder.mkdir()
            size_bytes = write_corpus(folder, size)
            kinds = {name: ["--worker", f"words-{name}", "--path", str(folder)] for name in ("ours", "peer")}
            runs = interleave(commands(kinds), args.rounds, dict.fromkeys(kinds, environment))
        extra = {"passages": size, "bytes": size_bytes, "found_passages": runs["ours"][0].result["passages"],
                 "disk_bytes": runs["ours"][0].result["disk"]}  # fmt: skip
        report(
            f"words {size}", runs["ours"], runs.get("peer"), size_bytes / 1e6, args.threads, peer_is="bm25s", **extra
        )
    if "vectors" in args.what:
        names = ["ours", "flat"] + (["hnsw"] if args.hnsw and size <= HNSW_MOST else [])
        kinds = {name: ["--worker", f"vectors-{name}", "--size", str(size)] for name in names}
        runs = interleave(commands(kinds), args.rounds, dict.fromkeys(kinds, environment))
        for name in [name for name in names[1:] if name in runs] or [None]:
            peer = runs[name] if name else None
            extra = {"passages": size, "held_bytes": runs["ours"][0].result["held"]}
            if peer:
                extra |= {"peer_is": f"faiss {name}", "same_of_ten": round(overlap(runs["ours"][0], peer[0]), 4)}
            report(f"vectors {size}", runs["ours"], peer, size / 1e3, args.threads, **extra)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="an interpreter with bm25s and faiss-cpu; without, ours alone")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--what", nargs="+", choices=("words", "vectors"), default=("words", "vectors"))
    parser.add_argument("--hnsw", action="store_true", help="beside faiss's approximate index as well")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", help="a folder for the files; the system's own without")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is None:
        for size in args.sizes:
            compare(args, size)
        return
    import json

    kind, _, who = args.worker.partition("-")
    if kind == "words":
        result = work_words_ours(args.path) if who == "ours" else work_words_peer(args.path)
    elif who == "ours":
        result = work_vectors_ours(args.size, args.threads)
    else:
        result = work_vectors_peer(args.size, args.threads, who)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
