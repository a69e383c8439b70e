"""A tiny encoder, a WordPiece tokenizer and a task that words decide: for tests of classifiers."""

from __future__ import annotations

from pathlib import Path

import torch

from dacheng.adapt.classifier_settings import ClassifierTrainConfig
from dacheng.data.labelled import LabelledTexts
from dacheng.formats.encoders import save_encoder
from dacheng.models.classifier import Classifier
from dacheng.models.encoder import Encoder, EncoderTraits
from dacheng.text import Tokenizer
from dacheng.text.vocabularies.wordpiece import tokenizer_from_wordpiece

SUBJECTS = {"animals": ("cat", "dog", "bird"), "sport": ("ball", "run", "goal"), "oos": ("tax", "moon", "song")}
FILLERS = ("the", "a", "my", "big", "red", "please", "now", "see", "find")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz.?"


def tokenizer(folder: Path) -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
    words += [*FILLERS, *(word for subjects in SUBJECTS.values() for word in subjects), "zebra", "##ing", "##s"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    made = tokenizer_from_wordpiece(folder / "vocab.txt")
    (folder / "vocab.txt").unlink()
    return made


def encoder(vocab_size: int, **changes) -> Encoder:
    shape = {"width": 32, "layers": 2, "heads": 2, "mlp_width": 64, "max_positions": 24, "initializer_range": 0.1}
    traits = EncoderTraits(vocab_size=vocab_size, **(shape | changes))
    return Encoder(traits).init_weights(torch.Generator().manual_seed(5))


def directory(folder: Path, **changes) -> Path:
    words = tokenizer(folder)
    return save_encoder(folder, encoder(words.vocab_size, **changes), words)


def texts(count: int = 96, seed: int = 0) -> LabelledTexts:
    """Every text holds one word of its class, among up to six that say nothing."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> int:
        return int(torch.randint(n, (1,), generator=generator))

    found, labels = [], []
    for _ in range(count):
        label = list(SUBJECTS)[draw(3)]
        words = [FILLERS[draw(len(FILLERS))] for _ in range(1 + draw(6))]
        words.insert(draw(len(words) + 1), SUBJECTS[label][draw(3)])
        found.append(" ".join(words))
        labels.append(label)
    return LabelledTexts(tuple(found), tuple(labels))


def classifier(vocab_size: int, pooling: str = "mean", **changes) -> Classifier:
    generator = torch.Generator().manual_seed(7)
    return Classifier.around(
        encoder(vocab_size, **changes), tuple(sorted(SUBJECTS)), pooling=pooling, generator=generator
    )


def settings(**changes) -> ClassifierTrainConfig:
    return ClassifierTrainConfig(**({"batch_rows": 16, "lr": 3e-3, "head_lr": None, "pooling": "mean"} | changes))
