"""The exam of a folder (or `stdlib`), row by row: who answers right, cites right, abstains right, and at what cost.

    python benchmarks/exam.py stdlib --out runs/exam --rows quote                       # seconds, no model
    python benchmarks/exam.py stdlib --out runs/exam --rows bare sources quote --model smollm2.gguf
    python benchmarks/exam.py stdlib --out runs/exam --rows sources adapted --model smollm2.gguf --adapter DIR
    python benchmarks/exam.py stdlib --out runs/exam --rows quote --questions benchmarks/stdlib_plain_questions.jsonl
    python benchmarks/exam.py stdlib --out runs/exam --examples examples.jsonl          # what an adapter is trained on

A run that was stopped goes on. One JSON line a row: figure -> [mean, low, high] at 95%, over all questions and, for
`stdlib`, over those a person wrote. `--examples` writes conversations of documents that the exam does not draw from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dacheng.evaluate.answers import summarise
from dacheng.rag.answer import MODES, Answerer
from dacheng.rag.calibration import calibrate
from dacheng.rag.exam import run_exam
from dacheng.rag.questions import split_questions
from dacheng.rag.questions.hand import hand_questions
from dacheng.rag.retrieve import Retriever
from dacheng.rag.store import PassageStore
from dacheng.rag.teaching import teaching_records
from dacheng.records import Drops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder, or stdlib")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", default=["quote"], choices=MODES)
    parser.add_argument("--model", type=Path, help="a model directory or a .gguf file with a chat template")
    parser.add_argument("--adapter", type=Path, help="a PEFT directory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shown", type=int, default=1, help="sources in a prompt")
    parser.add_argument("--questions", type=Path, help="ask these instead, in the form of stdlib_questions.jsonl")
    parser.add_argument("--encoder", action="store_true", help="search by vectors too, where an encoder is installed")
    parser.add_argument("--examples", type=Path, help="write the training conversations here, and do nothing else")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    store = PassageStore.open(options.out / "documents.db", create=True)
    store.sync(options.source)
    retriever = _retriever(store, options.encoder)
    splits = split_questions(store, options.seed, train=1200, hand=options.source == "stdlib")
    if options.examples:
        _write_examples(options, splits, retriever)
        return
    gate = calibrate(retriever, splits.calibration, splits.rarity, options.seed)
    print(json.dumps({"gate": gate.auroc, "threshold": gate.threshold, **splits.counts(), "search": retriever.mode}))
    answerer, room = Answerer(None, None, retriever, gate, rarity=splits.rarity), None
    if options.model:
        from dacheng.stages.adapting.model_room import ModelRoom

        room = ModelRoom(options.model)
        answerer.model, answerer.renderer = room.base, room.renderer
        if options.adapter:
            room.use_adapter(options.adapter)
            answerer.adapter_model = room.adapted
    for row in {"sources", "adapted"} & set(options.rows):
        answerer.shown[row] = options.shown
    settings = {"model": str(options.model), "adapter": str(options.adapter), "documents": store.fingerprint}
    folder = options.out / f"seed{options.seed}"
    exam = splits.exam
    if options.questions:
        folder, exam = folder / options.questions.stem, hand_questions(store.all(), lines=options.questions.read_text())
    result = run_exam(answerer, exam, options.rows, folder, settings=settings)
    print(result.table())
    _print_rows(result, {q.id for q in exam if q.kind == "hand"})
    if room is not None:
        room.close()


def _retriever(store: PassageStore, wanted: bool) -> Retriever:
    encoder = None
    if wanted:
        from dacheng.rag.dense import encode_store, find_encoder

        encoder = find_encoder()
        if encoder is not None:
            encode_store(store, encoder)
    return Retriever(store, encoder)


def _write_examples(options: argparse.Namespace, splits: Any, retriever: Retriever) -> None:
    count = None
    if options.model:
        from dacheng.formats.loading import load_tokenizer

        tokenizer = load_tokenizer(options.model)
        count = lambda text: len(tokenizer.encode(text))  # noqa: E731
    drops = Drops()
    records = teaching_records(splits.train, retriever, seed=options.seed, count=count, drops=drops)
    options.examples.write_text("".join(json.dumps({"messages": r.messages}) + "\n" for r in records))
    print(json.dumps({"examples": len(records), "dropped": drops.dropped}))


def _print_rows(result: Any, hand: set[str]) -> None:
    for row, scores in result.rows.items():
        line: dict[str, Any] = {"row": row, "all": summarise(list(scores.values()))}
        if hand:
            line["hand"] = summarise([s for key, s in scores.items() if key in hand])
        print(json.dumps(line))
    for first in result.rows:
        for second in ("sources", "sources+gate", "quote"):
            if second in result.rows and first in ("adapted", "quote") and first != second:
                print(json.dumps({"difference": f"{first} - {second}", **result.difference(first, second)}))


if __name__ == "__main__":
    main()
