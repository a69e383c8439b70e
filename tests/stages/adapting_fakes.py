"""A run's parts without a model: documents of a few lines, a trainer that is a real process and easily killed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dacheng.adapt.tail import LogTail
from dacheng.evaluate.answers import Scores
from dacheng.formats.model_directory import save_model
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.stages.adapting.plan import Speeds
from dacheng.text import train_tokenizer
from dacheng.text.chat.builtin import TEMPLATES

WORKER = textwrap.dedent(
    """
    import json, os, sys, time
    out, steps, every, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    os.makedirs(out + "/training", exist_ok=True)
    saved, log = out + "/training/saved", out + "/training/log.jsonl"
    done = int(open(saved).read()) if os.path.exists(saved) else 0
    start = open(log).read().count("from_step") if os.path.exists(log) else 0
    def say(line):
        with open(log, "a") as file: file.write(json.dumps(line) + chr(10))
    say({"start": start, "from_step": done, "steps": steps})
    for step in range(done + 1, steps + 1):
        time.sleep(pause)
        say({"start": start, "step": step, "loss": 3 / step + 1e-16 * step, "tokens": 64, "seconds": pause})
        if step % every == 0:
            with open(saved + ".new", "w") as file: file.write(str(step))
            os.replace(saved + ".new", saved)
            os.makedirs(out + "/training/snapshot", exist_ok=True)
    os.makedirs(out + "/adapter", exist_ok=True)
    open(out + "/adapter/adapter_config.json", "w").write("{}")
    """
)


class FakeTrainer:
    """What TrainerProcess is to a run; its child ends with the test, killed by `kill`."""

    def __init__(self, out: Path, steps: int, every: int = 5, pause: float = 0.01) -> None:
        self.out, self.arguments = out, [str(out), str(steps), str(every), str(pause)]
        self.process: subprocess.Popen | None = None
        self.kills = 0

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    @property
    def returncode(self):
        return None if self.process is None else self.process.poll()

    def start(self):
        self.process = subprocess.Popen([sys.executable, "-c", WORKER, *self.arguments])

    def pause(self):
        self.process.send_signal(19)

    def resume(self):
        self.process.send_signal(18)

    def kill(self):
        self.kills += self.alive
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def restart(self):
        self.kill()
        self.start()

    def tail(self):
        return LogTail(self.out / "training" / "log.jsonl")

    def failure(self):
        return None


@dataclass
class FakeQuestion:
    id: str
    question: str
    answers: tuple[str, ...] = ("yes",)
    kind: str = "which"


@dataclass
class FakeAnswer:
    question: str
    mode: str
    text: str
    abstained: bool = False
    seconds: float = 0.01


@dataclass
class FakeParts:
    """right: {mode: how many of ten it answers well}."""

    out: Path
    steps: int = 12
    right: dict[str, int] = field(default_factory=lambda: {"bare": 1, "sources": 5, "adapted": 7, "quote": 9})
    writes: bool = True
    trains: bool = True
    pause: float = 0.01
    fingerprint: str = "f"
    notes: list[str] = field(default_factory=list)
    batch_tokens: int = 64
    save_every: int = 5
    asked: list[tuple[str, str]] = field(default_factory=list)
    adapters: list[Path] = field(default_factory=list)
    made: FakeTrainer | None = None
    break_at: str = ""

    def read(self, progress):
        progress({"files": 1, "passages": 1, "bytes": 10, "drops": {}, "seconds": 0.0})
        return {"files": 2, "passages": 3, "bytes": 30, "drops": {"binary": 1}, "seconds": 0.1}

    def make_questions(self, seed):
        def some(name, n):
            return [FakeQuestion(f"{name}{k}", f"{name} {k}?", ("yes",) if k % 3 else ()) for k in range(n)]

        return {"train": some("t", 8), "calibration": some("c", 6), "exam": some("e", 20), "hand": some("h", 10)}

    def fit_gate(self, seed):
        return {"threshold": 0.5, "auroc": 0.9, "split_sizes": {"calibration": 6}}

    def answer(self, question, mode):
        self.asked.append((mode, question))
        if self.break_at == mode and len([1 for m, _ in self.asked if m == mode]) > 5:
            raise KeyboardInterrupt
        return FakeAnswer(question, mode, f"{mode} says [1]")

    def exam(self, questions, mode, progress):
        path = self.out / "exam" / f"{mode}.jsonl"
        path.parent.mkdir(exist_ok=True)
        done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        found = {line["id"]: Scores(**line["scores"]) for line in done}
        for question in questions:
            if question.id not in found:
                answer = self.answer(question.question, mode)
                found[question.id] = scores = self.score(question, answer)
                with open(path, "a") as file:
                    file.write(json.dumps({"id": question.id, "scores": scores.to_dict()}) + "\n")
                progress(len(found), len(questions))
        return {mode: found}

    def score(self, question, answer):
        good = int(question.id[1:]) % 10 < self.right[answer.mode]
        known = bool(question.answers)
        return Scores(
            known, good, good if known else None, good != known, good, 0.7, answer.seconds, [] if good else ["Foo"]
        )

    def show(self, answer):
        citation = {"number": 1, "passage_id": 1, "source": "a.md", "heading": "A", "first_line": 1, "last_line": 2,
                    "quote": "the words"}  # fmt: skip
        return {"question": answer.question, "mode": answer.mode, "text": answer.text, "abstained": answer.abstained,
                "citations": [citation], "nearest": [], "seconds": answer.seconds, "gate_score": 0.7}  # fmt: skip

    def passage(self, number):
        text = "Before it. the words <b>stand</b> here."
        return (
            {"id": number, "source": "a.md", "heading": "A", "first_line": 1, "last_line": 2, "text": text}
            if number == 1
            else None
        )

    def speeds(self, answer_s):
        return Speeds(answer_s, 1000.0, 100.0)

    def trainer(self, plan, seed):
        self.made = FakeTrainer(self.out, self.steps, self.save_every, self.pause)
        return self.made

    def use_adapter(self, path):
        self.adapters.append(path)

    def close(self):
        pass


def write_documents(folder: Path) -> Path:
    folder.mkdir()
    names = ["copy", "move", "remove", "rename", "list", "open", "close", "read", "write", "sync", "lock", "watch"]
    for k, name in enumerate(names):
        text = [f"# {name}_tree\n"]
        for part in ("source", "target", "limit", "mode"):
            text.append(
                f"## {name}_{part}\n\nThe function {name}_{part} returns the {part} of a {name} operation. It raises "
                f"{name.title()}{part.title()}Error if the {part} is missing. "
                f"The default {part} of {name} is {k * 7 + len(part)}.\n"
            )
        (folder / f"{name}.md").write_text("\n".join(text))
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    return folder


def save_tiny(path: Path) -> Path:
    """A model of random weights with a chat template."""
    texts = ["The function copy_target returns the default of the source.\nSources: Question: Answer [1]\n"] * 30
    tokenizer = train_tokenizer(texts, vocab_size=400, special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.config["chat_template"] = TEMPLATES["chatml"]
    traits = DecoderTraits(vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=4, max_positions=2048)
    torch.manual_seed(3)
    return save_model(path, Decoder(traits).eval(), tokenizer)
