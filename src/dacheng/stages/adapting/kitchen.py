"""The real parts of a run: passages in SQLite, drawn questions, the gate, a model here, a trainer beside it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError
from dacheng.evaluate.answers import Scores
from dacheng.formats.json_files import read_json, write_json
from dacheng.protocols import LanguageModel
from dacheng.records import Drops
from dacheng.stages.adapting.plan import Plan, Speeds

if TYPE_CHECKING:
    from dacheng.adapt.process import TrainerProcess
    from dacheng.rag.answer import Answer, Answerer
    from dacheng.rag.dense import LocalEncoder
    from dacheng.rag.gate import Gate
    from dacheng.rag.questions import Question, Splits
    from dacheng.stages.adapting.model_room import ModelRoom

STDLIB = "stdlib"
MOSTLY = 0.5  # of the passages: the language of the documents
TRIED = 48  # passages that are encoded to see how long all of them would take
TRAIN_TOKENS_PER_S = 250.0  # of SmolLM2 on two cores, where nothing was measured yet; the trainer measures for itself
ROW_TOKENS, BATCH_TOKENS, SAVE_EVERY = 512, 512, 20


class Kitchen:
    """source: a folder, or "stdlib". model: in this process, or None. remote: a LanguageModel behind a URL instead.

    Everything is under `out`: documents.db, questions/, gate.json, training/, adapter/.
    """

    def __init__(
        self, source: str, out: Path, model: ModelRoom | None = None, *, remote: LanguageModel | None = None,
        train: Mapping[str, Any] | None = None, encode_seconds: float = 60.0,
    ) -> None:  # fmt: skip
        """train: fields of adapt.settings.AdaptTrainConfig in place of ours. encode_seconds: vectors that would take
        longer are of the passages' beginnings, or not made, and retrieval is by words."""
        self.source, self.out, self.model, self.remote = source, out, model, remote
        self.train, self.encode_seconds = dict(train or {}), encode_seconds
        self.writes = model is not None or remote is not None
        self.trains = model is not None
        self.notes: list[str] = list(model.notes) if model is not None else []
        self.fingerprint = ""
        self.language = "en"
        self._answerer: Answerer | None = None
        self._splits: Splits | None = None
        self._store: Any = None

    # --- documents ----------------------------------------------------------------------------------------------------
    def read(self, progress: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        from dacheng.rag.dense import ENGLISH, find_encoder
        from dacheng.rag.retrieve import Retriever
        from dacheng.rag.store import PassageStore

        began = time.perf_counter()
        store = self._store = PassageStore.open(self.out / "documents.db", create=True)

        def told(report: Any) -> dict[str, Any]:
            return {"files": report.files, "passages": report.passages, "bytes": report.bytes,
                    "drops": report.drops.to_dict(), "seconds": time.perf_counter() - began}  # fmt: skip

        report = store.sync(self.source, lambda so_far: progress(told(so_far)))
        self._check(report)
        encoder, found = find_encoder(), None
        if encoder is not None and self.language == "zh" and encoder.name.startswith(ENGLISH):
            self.notes.append("retrieval is by words: the encoder at hand has read English alone")
        elif encoder is not None:
            found = self._encode(encoder, lambda values: progress({**told(report), **values}))
        self.fingerprint = store.fingerprint
        self._open(Retriever(store, found))
        return {**told(report), "retrieval": "hybrid" if found is not None else "bm25", "language": self.language}

    def _encode(self, whole: LocalEncoder, progress: Callable[[Mapping[str, Any]], None]) -> LocalEncoder | None:
        """The encoder of which every passage has a vector now: of whole passages, of their beginnings where that takes
        too much of the run, or None where even these do."""
        from dacheng.rag.dense import BEGINNING, complete_encoder, encode_store

        if (done := complete_encoder(self._store, whole)) is not None:
            return done
        for encoder in (whole, whole.of_beginnings(BEGINNING)):
            needed = self._seconds_to_encode(encoder)
            if needed <= self.encode_seconds:
                if encoder is not whole:
                    self.notes.append(f"vectors are of the first {BEGINNING} tokens of each passage: a run with more "
                                      "minutes makes them of all")  # fmt: skip
                encode_store(
                    self._store, encoder, lambda far: progress({"encoded": far.encoded, "to_encode": far.total})
                )
                return encoder
        self.notes.append(
            f"retrieval is by words alone: vectors of all passages would take {needed / 60:.1f} minutes here; "
            "a run with more minutes makes them"
        )
        return None

    def _seconds_to_encode(self, encoder: LocalEncoder) -> float:
        """Measured on a few passages from all over the store, the batches as full as they will be."""
        from dacheng.rag.dense import passage_text

        waiting = self._store.without_vectors(encoder.name)
        tried = list(self._store.many(waiting[:: max(1, len(waiting) // TRIED)][:TRIED]).values())
        encoder.encode([passage_text(passage) for passage in tried[:2]])  # the first call is slower
        began = time.perf_counter()
        encoder.encode([passage_text(passage) for passage in tried])
        return (time.perf_counter() - began) / max(1, len(tried)) * len(waiting)

    def open_or_read(self) -> None:
        """For one question: the index as it is, where the directory of a run has one; else the documents are read."""
        if (self.out / "recipe.json").exists() and (self.out / "documents.db").exists():
            from dacheng.rag.dense import complete_encoder, find_encoder
            from dacheng.rag.retrieve import Retriever
            from dacheng.rag.store import PassageStore

            self._store = store = PassageStore.open(self.out / "documents.db")
            self._open(Retriever(store, complete_encoder(store, find_encoder())))
        else:
            self.read(lambda values: None)
            self.answerer.gate = self.answerer.gate or self._uncalibrated()

    def _uncalibrated(self) -> Gate | None:
        """None for Chinese: of a question cut into pairs of characters, too few stand in any passage."""
        return None if self.language == "zh" else _gate_of(None)

    def _check(self, report: Any) -> None:
        if not report.passages:
            why = ", ".join(f"{count} {reason}" for reason, count in report.drops.dropped.items()) or "it is empty"
            raise DachengError("there is nothing to ask about in these documents", field="SOURCE",
                               value=f"{self.source}: {why}",
                               remedy="name a folder with Markdown, text, HTML, PDF, docx or code")  # fmt: skip
        languages = Counter(passage.language for passage in self._store.all())
        if languages["zh"] > MOSTLY * sum(languages.values()):
            self.language = "zh"
        if self.language == "zh" and self.model is not None and not _writes_chinese(self.model):
            self.writes = self.trains = False
            self.notes.append(
                f"these documents are Chinese, and {self.model.name} cannot write Chinese: answers are quotes. "
                "--model URL (any server with OpenAI's API) or --model FILE.gguf of a Chinese model writes them. "
                "这些文档是中文，而这个小模型写不了中文：回答将直接引用原文；可用 --model 指定中文模型。"
            )

    def _open(self, retriever: Any) -> None:
        from dacheng.rag.answer import Answerer

        base: LanguageModel | None = self.remote
        renderer = None
        if self.model is not None:
            base, renderer = self.model.base, self.model.renderer
        gate = self.out / "gate.json"
        self._answerer = Answerer(
            base, renderer, retriever, _gate_of(read_json(gate)) if gate.exists() else None,
            grammar=self.model is not None and _has_grammar(),
        )  # fmt: skip

    @property
    def answerer(self) -> Answerer:
        if self._answerer is None:
            raise DachengError("the documents are not read yet", remedy="call read first")
        return self._answerer

    def passage(self, number: int) -> dict[str, Any] | None:
        try:
            found = self._store.get(number)
        except DachengError:
            return None
        return {"id": found.id, "source": found.source, "heading": found.heading, "first_line": found.first_line,
                "last_line": found.last_line, "text": found.text, "place": found.place}  # fmt: skip

    # --- questions ----------------------------------------------------------------------------------------------------
    def make_questions(self, seed: int) -> dict[str, Sequence[Question]]:
        from dacheng.rag.questions import Splits, split_questions

        folder = self.out / "questions"
        if (folder / "whole").exists():
            splits = Splits.load(folder)
        else:
            splits = split_questions(self._store, seed, train=1200, exam=120, hand=self.source == STDLIB)
            splits.save(folder)
            (folder / "whole").touch()
        self._splits = splits
        hand = [question for question in splits.exam if question.kind == "hand"]
        drawn = [question for question in splits.exam if question.kind != "hand"]
        return {"train": splits.train, "calibration": splits.calibration, "exam": drawn, "hand": hand}

    def fit_gate(self, seed: int) -> dict[str, Any]:
        from dacheng.rag.calibration import calibrate

        path, answerer = self.out / "gate.json", self.answerer
        if path.exists():
            gate = _gate_of(read_json(path))
        else:
            calibration = self._splits.calibration if self._splits is not None else []
            gate = calibrate(answerer.retriever, calibration, answerer.rarity, seed)
            write_json(path, gate.to_dict())
        if gate.auroc is None:
            self.notes.append("too few questions to calibrate the gate on: it goes by how much of a question is found")
        self.answerer.gate = gate if gate.auroc is not None else self._uncalibrated()
        return {"threshold": gate.threshold, "auroc": gate.auroc, "calibrated": gate.auroc is not None,
                "split_sizes": {"answerable": gate.sizes[0], "unanswerable": gate.sizes[1]}}  # fmt: skip

    # --- answers ------------------------------------------------------------------------------------------------------
    def answer(self, question: str, mode: str) -> Answer:
        return self.answerer.answer(question, mode)  # type: ignore[arg-type]

    def exam(
        self, questions: Sequence[Question], mode: str, progress: Callable[[int, int], None]
    ) -> dict[str, dict[str, Scores]]:
        from dacheng.rag.exam import run_exam

        model = "" if self.model is None else str(self.model.path)
        settings = {"model": model, "documents": self.fingerprint}
        return run_exam(self.answerer, questions, [mode], self.out / "exam", settings=settings,  # type: ignore[list-item]
                        progress=lambda _, done, total: progress(done, total)).rows  # fmt: skip

    def show(self, answer: Answer) -> dict[str, Any]:
        nearest = [
            {"passage_id": h.passage.id, "source": h.passage.source, "heading": h.passage.heading}
            for h in answer.hits[:3]
        ]
        return {
            "question": answer.question, "mode": answer.mode, "text": answer.text, "abstained": answer.abstained,
            "citations": [citation.to_dict() for citation in answer.citations], "nearest": nearest,
            "gate_score": answer.gate_score, "seconds": answer.seconds, "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
        }  # fmt: skip

    # --- training -----------------------------------------------------------------------------------------------------
    @property
    def batch_tokens(self) -> int:
        return int(self.train.get("batch_tokens", BATCH_TOKENS))

    @property
    def save_every(self) -> int:
        return int(self.train.get("save_every", SAVE_EVERY))

    def speeds(self, answer_s: float) -> Speeds:
        return Speeds(answer_s, TRAIN_TOKENS_PER_S, 300.0)

    def trainer(self, plan: Plan, seed: int) -> TrainerProcess:
        from dacheng.adapt.process import TrainerProcess
        from dacheng.adapt.settings import AdaptTrainConfig
        from dacheng.adapt.worker_config import WorkerConfig

        assert self.model is not None, "nothing to train"
        path = self.out / "training" / "worker.json"
        if not path.exists():
            examples = self.out / "training" / "examples.jsonl"
            written = self._write_examples(examples, seed)
            known = {"row_tokens": ROW_TOKENS, "batch_tokens": BATCH_TOKENS, "save_every": SAVE_EVERY,
                     "snapshot_every": SAVE_EVERY, "held_out_rows": 2, "seconds": plan.train_seconds, "epochs": 3,
                     "seed": seed}  # fmt: skip
            config = AdaptTrainConfig(**{**known, **self.train})
            self.notes.append(f"{written} examples to train on")
            WorkerConfig(base=str(self.model.path), examples=str(examples), out=str(self.out), train=config).write(path)
        return TrainerProcess(path)

    def _write_examples(self, path: Path, seed: int) -> int:
        from dacheng.rag.teaching import teaching_records

        assert self._splits is not None and self.model is not None
        encode, drops = self.model.tokenizer.encode, Drops()
        records = teaching_records(self._splits.train, self.answerer.retriever, seed=seed, drops=drops,
                                   count=lambda text: len(encode(text)))  # fmt: skip
        if not records:
            raise DachengError("no example to train on could be made of these documents", field="SOURCE",
                               value=self.source, remedy="give more text, or --no-train (see --help)")  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"messages": record.messages}, ensure_ascii=False) + "\n" for record in records]
        path.write_text("".join(lines), encoding="utf-8")
        return len(lines)

    def use_adapter(self, path: Path) -> None:
        assert self.model is not None
        self.model.use_adapter(path)
        self.answerer.adapter_model = self.model.adapted

    def close(self) -> None:
        if self.model is not None:
            self.model.close()
        if self._store is not None:
            self._store.close()


def _gate_of(values: Mapping[str, Any] | None) -> Gate:
    """None: the gate of documents that were never calibrated on."""
    from dacheng.rag.gate import Gate

    return Gate.uncalibrated() if values is None else Gate.from_dict(values)


def _has_grammar() -> bool:
    from importlib.util import find_spec

    return find_spec("llguidance") is not None


def _writes_chinese(model: ModelRoom) -> bool:
    """Whether common Chinese text has tokens of its own: a vocabulary that spells it out byte by byte was not made of
    Chinese, and the model has hardly read any."""
    text = "我们在文档里可以找到问题的答案，这是一个简单的中文句子。"
    return len(model.tokenizer.encode(text)) <= len(text)
