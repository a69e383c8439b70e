"""The DPO family on polite and rude answers: held-out preference accuracy, free-form politeness, KL, log-probabilities.

    dacheng import smollm2 --out models/smollm2
    python benchmarks/preferences.py --data ../shared/data/rasbt_instruct/instruction-data-with-preference.json \\
        --model models/smollm2 --out runs/preferences --losses start dpo:1 dpo:2 dpo:3 ipo:1 simpo:1 …

The prompts are split in three. On the first part a word-count classifier learns which of two answers is the chosen one;
on the second the policies learn; on the third they are judged. They start from the model fine-tuned on chosen and
rejected answers alike, so that it writes both. Answers are sampled at temperature 1, so that mean(log π - log π_ref) of
them is an unbiased KL(π, π_ref) per answer. One JSON object a run. Needs scikit-learn (pip install scikit-learn).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from common import need

MOST = 64  # tokens of a conversation
ANSWER = 32  # tokens sampled at most
SETTINGS: dict[str, dict[str, Any]] = {  # beyond the losses' own defaults
    "robust": {"label_smoothing": 0.1}, "conservative": {"label_smoothing": 0.1},
    # Eight answers a step have the signal of four pairs, and KTO looks at each alone.
    "kto": {"batch_pairs": 8},
}  # fmt: skip


def parts(path: Path) -> dict[str, list[Any]]:
    """classifier, train, test: by the prompt."""
    from dacheng.data.preferences import read_preferences, split_preferences
    from dacheng.records import Drops

    rest, test = split_preferences(read_preferences([path], Drops()), 0.15, "test")
    train, classifier = split_preferences(rest, 0.4, "classifier")
    return {"classifier": classifier, "train": train, "test": test}


def word_classifier(pairs: list[Any]) -> Any:
    """texts -> probabilities that they are of the chosen kind."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = [reply[0]["content"] for p in pairs for reply in (p.said.chosen, p.said.rejected)]
    made = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10))
    made.fit(texts, [1, 0] * len(pairs))
    return lambda said: made.predict_proba(said)[:, 1]


def share(values: Any) -> list[float]:
    from dacheng.evaluate.intervals import wilson

    found = wilson(int(sum(values)), len(values))
    return [round(found.estimate, 3), round(found.low, 3), round(found.high, 3)]


def start_from(model: Path, out: Path, pairs: list[Any], steps: int) -> Path:
    """The model fine-tuned on both kinds of answers, merged; made once."""
    if (out / "config.json").is_file():
        return out
    from dacheng.adapt import AdaptTrainConfig, merge, train_adapter
    from dacheng.formats.model_directory import load_model, save_model
    from dacheng.records import Record
    from dacheng.text import ChatRenderer

    loaded = load_model(model, dtype="float32")
    assert loaded.tokenizer is not None
    renderer = ChatRenderer(loaded.tokenizer, "chatml")
    chats = [
        Record(p.id, messages=[*p.said.prompt, *reply]) for p in pairs for reply in (p.said.chosen, p.said.rejected)
    ]
    config = AdaptTrainConfig(lr=1e-3, steps=steps, row_tokens=256, batch_tokens=512)
    made = train_adapter(loaded.model, chats, out.parent / "sft", config, renderer=renderer)
    print(json.dumps({"start": [made.loss_before, made.loss_after], "seconds": made.seconds}), flush=True)
    merge(loaded.model)
    return save_model(out, loaded.model, loaded.tokenizer, generation=loaded.generation)


def free_form(model: Any, renderer: Any, prompts: list[Any], polite: Any, adapted: bool) -> dict[str, Any]:
    """Sampled answers to held-out prompts: how many are of the chosen kind, and how far the policy has moved."""
    import numpy as np
    import torch

    from dacheng.adapt import disabled
    from dacheng.align.preferences.reference import row_logps
    from dacheng.data.pairs import Row
    from dacheng.engine import Engine
    from dacheng.evaluate.intervals import bootstrap_mean
    from dacheng.protocols import SamplingParams

    model.eval()
    ids = [renderer.render(p.said.prompt, add_generation_prompt=True).token_ids for p in prompts]
    end = renderer.tokenizer.special_tokens["<|im_end|>"]
    params = [
        SamplingParams(max_tokens=ANSWER, temperature=1.0, seed=i, stop_token_ids=(end,)) for i in range(len(ids))
    ]
    said = Engine(model, renderer.tokenizer).generate(ids, params)
    likeness = polite([one.text for one in said]).tolist()
    found = {"polite": share([p > 0.5 for p in likeness]), "likeness": likeness,
             "polite_mean": round(float(np.mean(likeness)), 3),
             "stopped": share([one.finish_reason == "stop" for one in said]),
             "answer_tokens": round(float(np.mean([len(one.token_ids) for one in said])), 1),
             "samples": [one.text for one in said[:3]]}  # fmt: skip
    if adapted:
        rows = []
        for before, one in zip(ids, said):
            own = list(one.token_ids) + ([end] if one.finish_reason == "stop" and end not in one.token_ids else [])
            learnt = np.arange(len(before) + len(own)) >= len(before)
            rows.append(Row(np.array([*before, *own], np.int32), learnt))
        logps = torch.cat([row_logps(model, rows[i : i + 16]) for i in range(0, len(rows), 16)])
        with disabled(model):
            reference = torch.cat([row_logps(model, rows[i : i + 16]) for i in range(0, len(rows), 16)])
        kl = bootstrap_mean((logps - reference).numpy())
        found["kl"] = [round(kl.estimate, 2), round(kl.low, 2), round(kl.high, 2)]
    return found


def learn(start: Path, named: str, data: dict[str, list[Any]], polite: Any, args: Any) -> dict[str, Any]:
    from dacheng.align.preferences import PreferTrainConfig, train_preferences
    from dacheng.formats.model_directory import load_model
    from dacheng.text import ChatRenderer

    loss, _, rest = named.partition(":")
    seed, _, lr = rest.partition(":")
    loaded = load_model(start, dtype="float32")
    renderer = ChatRenderer(loaded.tokenizer, "chatml")  # type: ignore[arg-type]
    more: dict[str, Any] = {"lr": float(lr or args.lr), "steps": args.steps, "batch_pairs": 4} | SETTINGS.get(loss, {})
    config = PreferTrainConfig(
        loss=loss, seed=int(seed or 1), rank=16, layers=12, max_tokens=MOST, eval_pairs=args.pairs, **more
    )  # type: ignore[arg-type]
    began = time.perf_counter()
    made = train_preferences(
        loaded.model, data["train"][: args.train], args.out / named.replace(":", "-"), config, renderer=renderer,
        held_out=data["test"], cache=args.out / "reference",
    )  # fmt: skip
    keep = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "logps/accuracies")
    return {
        "loss": loss, "seed": config.seed, "lr": config.lr, "steps": made.steps, "pairs": made.measured_pairs,
        "seconds": round(time.perf_counter() - began, 1), "tok/s": round(made.tokens_per_s),
        "accuracy": [round(v, 3) for v in made.accuracy], "references": made.references,
        "before": {name: round(made.before[name], 3) for name in keep},
        "after": {name: round(made.after[name], 3) for name in keep},
        **free_form(loaded.model, renderer, data["test"][: args.prompts], polite, adapted=True),
    }  # fmt: skip


def begun(start: Path, data: dict[str, list[Any]], polite: Any, args: Any) -> dict[str, Any]:
    """The free-form answers of the policy that all start from."""
    from dacheng.formats.model_directory import load_model
    from dacheng.text import ChatRenderer

    loaded = load_model(start, dtype="float32")
    renderer = ChatRenderer(loaded.tokenizer, "chatml")  # type: ignore[arg-type]
    prompts = data["test"][: args.prompts]
    return {"loss": "start", **free_form(loaded.model, renderer, prompts, polite, adapted=False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2"))
    parser.add_argument("--out", type=Path, default=Path("runs/preferences"))
    parser.add_argument("--losses", nargs="*", default=["dpo:1"], help="loss:seed[:lr], or start")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--train", type=int, default=150, help="pairs that policies learn from")
    parser.add_argument("--start-steps", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--pairs", type=int, default=80, help="held-out pairs")
    parser.add_argument("--prompts", type=int, default=40, help="held-out prompts that are answered")
    args = parser.parse_args()
    need("sklearn", "scikit-learn")

    from dacheng.evaluate.intervals import paired_difference

    data = parts(args.data)
    polite = word_classifier(data["classifier"])
    sides = [polite([getattr(p.said, side)[0]["content"] for p in data["test"]]) for side in ("chosen", "rejected")]
    print(json.dumps({"classifier_accuracy": share(sides[0] > sides[1]), **{k: len(v) for k, v in data.items()}}),
          flush=True)  # fmt: skip
    start = start_from(args.model, args.out / "start", data["train"], args.start_steps)
    before: list[float] = []
    for named in args.losses:
        found = begun(start, data, polite, args) if named == "start" else learn(start, named, data, polite, args)
        likeness = found.pop("likeness")
        if named == "start":
            before = likeness
        elif before:  # the same prompts and seeds: what changed of each
            over_half = [float(p > 0.5) for p in likeness], [float(p > 0.5) for p in before]
            for name, pair in (("polite_gain", (likeness, before)), ("polite_share_gain", over_half)):
                gain = paired_difference(*pair)
                found[name] = [round(gain.estimate, 3), round(gain.low, 3), round(gain.high, 3)]
        print(json.dumps(found, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    sys.exit(main())
