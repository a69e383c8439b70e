"""Makes tests/goldens/encoders: tiny random BERTs with their hidden states and text vectors, and vectors of the real
MiniLM, by transformers' own code.

    python tests/goldens/make_encoder_parity.py MINILM_DIRECTORY    # made with transformers 5.23.0, torch 2.13.0

A case is a directory as `save_pretrained` writes it, with expected.safetensors {ids (B, T), lengths (B,), types (B, T),
hidden (B, T, D) with these types, mean (B, D) and cls (B, D) normalised with types 0, pooler (B, D)}. Norms and biases
are drawn too, and weights are large. minilm.json has TEXTS' vectors by the model's card: mean over the attention mask,
then length 1, cut at 256 tokens.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, BertTokenizer

OUT = Path(__file__).resolve().parent / "encoders"
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "of", "cat", "dog", "house", "##s", "##ing", "run", "eat",
    "big", "red", ".", ",", "?", "中", "国", "大", "1", "2", "##3",
]  # fmt: skip
BASE = {
    "vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40, "initializer_range": 0.25,
}  # fmt: skip
CASES: dict[str, dict] = {
    "bert": {},
    "bert_tanh_gelu": {
        "hidden_act": "gelu_new",
        "num_attention_heads": 2,
        "layer_norm_eps": 1e-3,
        "type_vocab_size": 3,
    },
    "bert_masked_lm_of_the_first_files": {"num_hidden_layers": 1},
}
TEXTS = [
    "The capital of France is Paris.",
    "Paris is France's capital city.",
    "shutil.rmtree(path, ignore_errors=False): Recursively delete a directory tree.",
    "长江是中国最长的河流。",
    "naïve café — “quotes”, emoji 😀 and [SEPARATOR] brackets",
    "",
    "a",
    "A long text that goes on. " * 80,
]


@torch.no_grad()
def make(name: str, seed: int) -> None:
    out = OUT / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    torch.manual_seed(seed)
    config = BertConfig(**{**BASE, **CASES[name]})
    masked = "masked_lm" in name
    whole = BertForMaskedLM(config) if masked else BertModel(config)
    for parameter_name, parameter in whole.named_parameters():
        if "LayerNorm.weight" in parameter_name:
            parameter.add_(0.3 * torch.randn_like(parameter))
        elif parameter_name.endswith("bias"):
            parameter.normal_(0, 0.3)
    BertTokenizer(str(out / "vocab.txt")).save_pretrained(out)
    (out / "vocab.txt").unlink(missing_ok=True)
    whole.save_pretrained(out)
    if masked:
        as_first_written(out)
    model = (whole.bert if masked else whole).eval()
    ids = torch.randint(5, len(WORDS), (3, 20))
    types = torch.randint(0, config.type_vocab_size, (3, 20))
    lengths = torch.tensor([20, 7, 1])
    mask = (torch.arange(20) < lengths[:, None]).long()
    typed = model(ids, attention_mask=mask, token_type_ids=types)
    plain = model(ids, attention_mask=mask).last_hidden_state
    mean = (plain * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    found = {"ids": ids, "types": types, "lengths": lengths, "hidden": typed.last_hidden_state * mask[..., None]}
    found |= {"mean": torch.nn.functional.normalize(mean), "cls": torch.nn.functional.normalize(plain[:, 0])}
    if typed.pooler_output is not None:
        found["pooler"] = typed.pooler_output
    assert typed.last_hidden_state.std() > 0.5
    save_file({key: value.contiguous() for key, value in found.items()}, out / "expected.safetensors")


def as_first_written(out: Path) -> None:
    """gamma and beta, and the positions stored."""
    tensors = load_file(out / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(BASE["max_position_embeddings"])[None]
    save_file(old, out / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def real(directory: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    rows = []
    for text in TEXTS:
        batch = tokenizer([text], truncation=True, max_length=256, padding=False, return_tensors="pt")
        hidden = model(**batch).last_hidden_state[0]
        vector = torch.nn.functional.normalize(hidden.mean(0), dim=0)
        rows.append(
            {"text": text, "ids": batch.input_ids[0].tolist(), "vector": [round(x, 7) for x in vector.tolist()]}
        )
    (OUT / "minilm.json").write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for number, case in enumerate(CASES):
        make(case, number)
    real(Path(sys.argv[1]))
