"""dacheng align judge, revise: preferences and examples by a model's own judgement (RLAIF)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dacheng.errors import UsageError

if TYPE_CHECKING:
    from dacheng.align.judging import Asker, Pair
    from dacheng.records import Drops
    from dacheng.stages.base import Task


def judge(
    files: list[Path],
    /,
    *,
    model: str,
    out: Path | None = None,
    comparison: str = "answers the question better?",
    margin: float = 0.0,
    consistent: bool = False,
    limit: int | None = None,
    api_key_file: Path | None = None,
    json: bool = False,
) -> int:
    """Asks a model which of two replies is better, each pair both ways round, and how far it can be trusted.

    Example: dacheng align judge recipes/align/pairs.jsonl --model models/smollm2 --limit 20 --out judged.jsonl

    Parameters
    ----------
    files
        Files of preferences, see dacheng align pairs, or of {"prompt", "responses": [one, other, …]}; what they prefer
        is not shown to the judge. The same pair again is judged once.
    model
        The judge: a directory, a name from history, or the URL of a server with OpenAI's API.
    out
        Where the judge's preferences go, as JSON lines for dacheng align prefer. OUT.asked.jsonl keeps each answer as
        it comes, so that the same command goes on from an interrupted one.
    comparison
        The end of the question "Which response …".
    margin
        Pairs it is less sure of (probability within 0.5 +- margin) are left out.
    consistent
        Leave out what it judges differently the other way round.
    limit
        Only the first so many pairs.
    api_key_file
        Of a server that wants a key: the file's first line.
    json
        One JSON document on stdout.
    """
    from dacheng.align.judging import compare, figures, preference_records, write_records
    from dacheng.cli.console import print_json, reporter, use_threads
    from dacheng.evaluate.intervals import wilson
    from dacheng.records import Drops

    use_threads()
    drops = Drops()
    asked = _pairs(files, drops)[:limit]
    pairs = [pair for pair, _ in asked]
    with reporter().task(f"asking about {len(pairs)} pairs, both ways round") as task:
        verdicts = compare(_asker(model, api_key_file, out=out, heard=_heard(task)), pairs, comparison=comparison)
    found = figures(pairs, verdicts, margin)
    known = [v.probability for v, (_, said) in zip(verdicts, asked) if said]
    decided = [p for p in known if p is not None and p != 0.5]
    agreed = wilson(sum(p > 0.5 for p in decided), len(decided)) if decided else None
    kept = 0
    if out is not None:
        kept = write_records(out, preference_records(pairs, verdicts, margin=margin, consistent_only=consistent))
    if json:
        agreement = None if agreed is None else agreed.to_dict()
        print_json({"judge": asdict(found), "agreement": agreement, "written": kept, "drops": drops.to_dict()})
        return 0
    print(found.sentence())
    if agreed is not None:
        print(f"agrees with the file on {agreed.estimate:.0%} of {agreed.n} ({agreed.low:.0%} to {agreed.high:.0%})")
    if out is not None:
        print(f"{kept} preferences in {out}")
    for reason, count in drops.dropped.items():
        print(f"{count} x {reason}, first: {drops.examples.get(reason, '')}")
    return 0


def revise(
    file: Path,
    /,
    *,
    model: str,
    out: Path,
    pairs: Path | None = None,
    principles: Path | None = None,
    rounds: int = 1,
    seed: int = 0,
    max_tokens: int = 256,
    api_key_file: Path | None = None,
    json: bool = False,
) -> int:
    """Lets a model answer, criticise its answer by a principle, and revise it: examples to fine-tune on.

    Example: dacheng align revise recipes/align/asks_held_out.jsonl --model models/smollm2 --out revised.jsonl

    Parameters
    ----------
    file
        JSON lines of {"prompt": text} or {"messages": [...]}.
    model
        A directory, a name from history, or the URL of a server with OpenAI's API.
    out
        The revisions as conversations, for dacheng train recipes/align/sft.yaml sft.data=[OUT]. OUT.asked.jsonl keeps
        each answer as it comes, so that the same command goes on from an interrupted one.
    pairs
        The last revision over the first answer, for dacheng align prefer.
    principles
        JSON of yours, {"principles": [{"name", "critique", "revision", "comparison"}]}.
    rounds
        Critiques and revisions of each answer.
    seed
        Of the principles that are drawn.
    max_tokens
        Of an answer, a critique and a revision, each.
    api_key_file
        Of a server that wants a key: the file's first line.
    json
        One JSON document on stdout.
    """
    from dacheng.align.judging import PRINCIPLES, read_principles, write_records
    from dacheng.align.judging import revise as revised
    from dacheng.align.reinforce.prompts import PromptSpec
    from dacheng.cli.console import print_json, reporter, use_threads
    from dacheng.data.sources import open_source
    from dacheng.records import Drops

    use_threads()
    unread = Drops()
    prompts = [
        record.messages or [{"role": "user", "content": record.text}]
        for record in open_source([PromptSpec(path=str(file))], unread)
    ]
    if not prompts:
        raise UsageError("there is no prompt", field="FILE", value=str(file),
                         remedy='lines of {"prompt": text} or {"messages": [...]}')  # fmt: skip
    held_to = PRINCIPLES if principles is None else read_principles(principles)
    with reporter().task(f"answers to {len(prompts)} prompts, critiques, revisions") as task:
        asker = _asker(model, api_key_file, max_tokens, out, _heard(task))
        made, drops = revised(asker, prompts, principles=held_to, rounds=rounds, seed=seed)
    written = write_records(out, [one.sft_record() for one in made])
    if pairs is not None:
        write_records(pairs, [one.pair_record() for one in made])
    drops.merge(unread)
    if json:
        print_json({"prompts": len(prompts), "written": written, "drops": drops.to_dict()})
        return 0
    print(f"{written} of {len(prompts)} answers revised, in {out}")
    for reason, count in drops.dropped.items():
        print(f"{count} x {reason}, first: {drops.examples.get(reason, '')}")
    return 0


def _pairs(files: list[Path], drops: Drops) -> list[tuple[Pair, bool]]:
    """The pairs of the files, and whether the file itself says that `one` is the better reply. A judge reads text
    alone: replies of several messages, with calls of tools or thoughts, are counted and left out."""
    from dacheng.align.judging import Pair
    from dacheng.align.labelling.pairs import read_pairs

    pairs = []
    for pair in read_pairs(files, drops):
        if len(pair.a) > 1 or len(pair.b) > 1:
            drops.drop("no_pair_of_single_replies", example=pair.id)
        elif pair.tools or any(reply[0].keys() - {"role", "content"} for reply in (pair.a, pair.b)):
            drops.drop("more_than_text", example=pair.id)
        else:
            texts = [str(reply[0]["content"]) for reply in (pair.a, pair.b)]
            pairs.append((Pair(pair.prompt, *texts), pair.said is not None))
    if not pairs:
        raise UsageError("there is no pair to judge", field="FILES", value=[str(path) for path in files],
                         remedy="replies of one message each")  # fmt: skip
    return pairs


def _asker(
    model: str,
    api_key_file: Path | None,
    max_tokens: int = 256,
    out: Path | None = None,
    heard: Callable[[int, int], None] | None = None,
) -> Asker:
    """out: its answers are kept beside it."""
    from dacheng.align.judging import Asker, RememberedModel

    if model.startswith(("http://", "https://")):
        from dacheng.cli.serve import first_key
        from dacheng.serve.remote_model import RemoteModel

        remote = RemoteModel(model, first_key(api_key_file))
        asker, identity = Asker(model=remote, max_tokens=max_tokens), f"{model} {remote.name}"
    else:
        from dacheng.cli.models import find_model
        from dacheng.formats.provenance import weights_hash
        from dacheng.formats.safetensors_io import sha256_file

        path = find_model(model)
        asker = Asker.open(path, max_tokens=max_tokens)
        identity = weights_hash(path) if path.is_dir() else sha256_file(path)
    if out is None:
        return asker
    kept = RememberedModel(asker.model, out.with_name(out.name + ".asked.jsonl"), identity, heard)
    return replace(asker, model=kept)


def _heard(task: Task) -> Callable[[int, int], None]:
    return lambda done, of: task.update(done, total=of, text=f"{done} of {of}")
