"""Makes tests/goldens/classifiers: a tiny random BertForSequenceClassification with its logits and a step's gradients,
by transformers' own code.

    python tests/goldens/make_classifier_parity.py    # made with transformers 5.23.0, torch 2.13.0

The directory is as `save_pretrained` writes it, with expected.safetensors {ids (B, T), lengths (B,), labels (B,),
logits (B, C), loss (), grad.<their name>}: loss is transformers' own, mean cross-entropy, without dropout.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

OUT = Path(__file__).resolve().parent / "classifiers"
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "a",
    "cat",
    "dog",
    "##s",
    "run",
    "big",
    ".",
    "?",
    "中",
    "国",
]
LABELS = {0: "animals", 1: "sport", 2: "oos"}
KEPT = ("classifier.weight", "bert.pooler.dense.weight", "bert.encoder.layer.0.attention.self.query.weight")


def make(out: Path, seed: int = 0) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, initializer_range=0.3, id2label=LABELS,
        label2id={name: i for i, name in LABELS.items()},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
    (out / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    BertTokenizer(str(out / "vocab.txt")).save_pretrained(out)
    (out / "vocab.txt").unlink(missing_ok=True)
    model.save_pretrained(out)
    ids = torch.randint(5, len(WORDS), (4, 9))
    lengths, labels = torch.tensor([9, 4, 1, 6]), torch.tensor([0, 2, 1, 2])
    mask = (torch.arange(9) < lengths[:, None]).long()
    found = model.eval()(ids, attention_mask=mask, labels=labels)
    found.loss.backward()
    gradients = dict(model.named_parameters())
    expected = {"ids": ids, "lengths": lengths, "labels": labels, "logits": found.logits.detach()}
    expected |= {"loss": found.loss.detach()} | {f"grad.{name}": gradients[name].grad for name in KEPT}
    save_file({key: value.contiguous() for key, value in expected.items()}, out / "expected.safetensors")


if __name__ == "__main__":
    make(OUT / "bert")
