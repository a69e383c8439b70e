"""How well the right passage is found: by words (BM25), by vectors, and by both.

    python benchmarks/retrieval.py --stdlib                              # the interpreter's library, 40 hand questions
    python benchmarks/retrieval.py --squad xquad-en=xquad.en.json.gz --squad cmrc2018-dev=cmrc2018_dev.json.gz
    python benchmarks/retrieval.py --cranfield FOLDER                    # with cran.all.1400, cran.qry and cranqrel

Of a file in SQuAD's form each paragraph is a document and each question looks for its own; of Cranfield all that is
judged 1 to 4 counts alike. Documents are written out as files and indexed as any folder is; a document's rank is that
of its best passage. One JSON line a set and mode, with intervals over questions (bootstrap), and one for each paired
difference of nDCG@10 from hybrid. --cache keeps the stores, whose vectors take most of the time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from dacheng.evaluate.intervals import Interval, paired_difference
from dacheng.evaluate.ranking import score_rankings, summarise
from dacheng.rag.dense import Encoder, encode_store, find_encoder
from dacheng.rag.retrieve import Hit, Retriever
from dacheng.rag.store import PassageStore

MEASURES = ("ndcg@10", "recall@1", "recall@5", "mrr@10", "map")
MAIN = "ndcg@10"
MODES = ("bm25", "dense", "hybrid")
DEPTH = 100  # passages looked at for a ranking of documents


@dataclass
class Collection:
    """documents: texts by file name, or None for the interpreter's library; questions and what answers them by id."""

    name: str
    documents: dict[str, str] | None
    questions: dict[str, str]
    relevance: dict[str, dict[str, int]] = field(default_factory=dict)

    def unit(self, hit: Hit) -> str:
        """What is judged: a document, of the library a name in it."""
        passage = hit.passage
        return passage.source if self.documents is not None else f"{passage.source}#{passage.heading}"


def squad(name: str, path: Path) -> Collection:
    """A paragraph that occurs twice is one document."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    found, names = Collection(name, {}, {}), dict[str, str]()
    assert found.documents is not None
    for article in json.loads(data)["data"]:
        for paragraph in article["paragraphs"]:
            text = paragraph["context"]
            document = names.setdefault(text, f"{len(names):05}.txt")
            found.documents[document] = text
            for question in paragraph["qas"]:
                number = str(question["id"])
                found.questions[number], found.relevance[number] = question["question"], {document: 1}
    return found


def cranfield(folder: Path) -> Collection:
    """Queries are numbered from 1 in the judgements, whatever cran.qry calls them."""
    found = Collection("cranfield", {}, {})
    assert found.documents is not None
    for number, parts in _records(folder / "cran.all.1400"):
        title, body = parts.get("T", "").strip(), parts.get("W", "").strip()
        text = body if body.startswith(title) else f"{title}\n\n{body}"  # most bodies begin with their title
        found.documents[f"{number:05}.txt"] = text or "."
    for i, (_, parts) in enumerate(_records(folder / "cran.qry"), 1):
        found.questions[str(i)], found.relevance[str(i)] = " ".join(parts["W"].split()), {}
    for line in (folder / "cranqrel").read_text().splitlines():
        query, document, code = map(int, line.split())
        if code > 0:
            found.relevance[str(query)][f"{document:05}.txt"] = 1
    return found


def _records(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for record in re.split(r"^\.I ", path.read_text(), flags=re.M)[1:]:
        number, _, rest = record.partition("\n")
        parts = re.split(r"^\.([TABW])\n", rest, flags=re.M)
        yield int(number), dict(zip(parts[1::2], parts[2::2]))


def stdlib() -> Collection:
    found = Collection("stdlib", None, {})
    lines = (files("dacheng.rag") / "data" / "stdlib_questions.jsonl").read_text(encoding="utf-8").splitlines()
    for question in map(json.loads, lines):
        if question["answers"]:
            found.questions[question["id"]] = question["question"]
            found.relevance[question["id"]] = {f"{w['source']}#{w['heading']}": 1 for w in question["where"]}
    return found


class Remembered:
    """An encoder that has made the questions' vectors beforehand, many at a time: the times are those of searching."""

    def __init__(self, encoder: Encoder, texts: list[str]) -> None:
        self.name, self.width = encoder.name, encoder.width
        self._rows = dict(zip(texts, encoder.encode(texts)))

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([self._rows[text] for text in texts])


def stored(collection: Collection, folder: Path, encoder: Encoder | None) -> tuple[PassageStore, dict[str, float]]:
    """The set's store, indexed and encoded where it was not."""
    root: Path | str = "stdlib"
    if collection.documents is not None:
        root = folder / collection.name
        root.mkdir(parents=True, exist_ok=True)
        for name, text in collection.documents.items():
            (root / name).write_text(text, encoding="utf-8")
    store = PassageStore.open(folder / f"{collection.name}.db", create=True)
    report = store.sync(root)
    seconds = {"index_s": report.seconds}
    if encoder is not None:
        encoded = encode_store(store, encoder)
        seconds |= {"encoded": encoded.encoded, "encode_s": encoded.seconds, "cut": encoded.cut}
    return store, seconds


def measured(collection: Collection, retriever: Retriever, mode: Any) -> tuple[dict[str, list[float]], list[float]]:
    rankings, seconds = {}, []
    for number, question in collection.questions.items():
        started = time.perf_counter()
        hits = retriever.search(question, DEPTH, mode)
        seconds.append(time.perf_counter() - started)
        rankings[number] = list(dict.fromkeys(map(collection.unit, hits)))
    return score_rankings(rankings, collection.relevance, MEASURES), seconds


def shown(interval: Interval) -> list[float]:
    return [round(x, 4) for x in (interval.estimate, interval.low, interval.high)]


def compare(collection: Collection, folder: Path, encoder: Encoder | None, k_rrf: int | None) -> None:
    store, seconds = stored(collection, folder, encoder)
    questions = list(collection.questions.values())
    retriever = Retriever(store, None if encoder is None else Remembered(encoder, questions), k_rrf=k_rrf)
    size = {"documents": len(collection.documents) if collection.documents is not None else None,
            "passages": len(store), "questions": len(collection.questions)}  # fmt: skip
    emit({"set": collection.name, **size, **{name: round(value, 2) for name, value in seconds.items()}})
    found = {}
    for mode in MODES if encoder is not None else MODES[:1]:
        scores, times = measured(collection, retriever, mode)
        found[mode] = scores[MAIN]
        means = {name: shown(interval) for name, interval in summarise(scores).items()}
        emit({"set": collection.name, "mode": mode, **means, "search_ms": round(1e3 * sum(times) / len(times), 2)})
    for other in MODES[:2] if encoder is not None else ():
        difference = shown(paired_difference(found["hybrid"], found[other]))
        emit({"set": collection.name, "difference": f"hybrid - {other}", MAIN: difference, "k_rrf": k_rrf})
    store.close()


def emit(line: dict[str, Any]) -> None:
    print(json.dumps(line, ensure_ascii=False), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--cranfield", type=Path)
    parser.add_argument("--stdlib", action="store_true")
    parser.add_argument("--cache", type=Path, help="a folder that keeps the stores")
    parser.add_argument("--no-dense", action="store_true", help="BM25 only")
    parser.add_argument("--k-rrf", type=int, help="join the rankings by reciprocal ranks with this constant")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    collections = [squad(name, Path(path)) for name, _, path in (pair.partition("=") for pair in args.squad)]
    collections += [cranfield(args.cranfield)] if args.cranfield else []
    collections += [stdlib()] if args.stdlib else []
    if not collections:
        parser.error("name a set")
    encoder = None if args.no_dense else find_encoder()
    emit({"encoder": None if encoder is None else encoder.name, "threads": args.threads})
    with tempfile.TemporaryDirectory() as scratch:
        for collection in collections:
            compare(collection, args.cache or Path(scratch), encoder, args.k_rrf)


if __name__ == "__main__":
    main()
