"""Makes tests/goldens/distillation.json: losses of distillation by their authors' or their users' own code.

    python tests/goldens/make_distillation.py FOLDER    # made with TRL 1.16.0, transformers 5.23.0, torch 2.13.0

TRL: GKDTrainer.generalized_jsd_loss. FOLDER holds two files, loaded with stubs for what they import beside torch:
distiller.py, DistilBERT's training (huggingface/transformers, research_projects/distillation, of which
monologg/DistilKoBERT has a copy), whose Distiller.step is run on given logits and states; minilmv2.py
(bloomberg/minilmv2.bb), whose MiniLM is run on two tiny BERTs, with relations (1,2) and (3,3) for MiniLM's first form
(attention and values) and (1,1), (2,2), (3,3) for its second. TinyBERT's are its task_distill.py's MSELoss over all
scores and states of the same BERTs, of texts without padding.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

OUT = Path(__file__).resolve().parent / "distillation.json"
HEADS = 3


def load(path: Path, stubs: tuple[str, ...]) -> Any:
    for name in stubs:
        module = types.ModuleType(name)
        for attribute in ("GroupedBatchSampler", "create_lengths_groups", "LmSeqsDataset", "logger", "SummaryWriter"):
            setattr(module, attribute, None)
        sys.modules.setdefault(name, module)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(tensor: torch.Tensor) -> list:
    return json.loads(json.dumps([round(x, 6) for x in tensor.flatten().tolist()])) + list(tensor.shape)


def jsd(generator: torch.Generator) -> list[dict]:
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    student, teacher = (torch.randn(2, 3, 7, generator=generator).mul(2).round(decimals=6) for _ in range(2))
    labels = torch.tensor([[1, -100, 2], [3, 4, -100]])
    rows = []
    for beta in (0.0, 0.1, 0.5, 0.9, 1.0):
        for temperature in (0.9, 1.0, 2.0):
            loss = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=temperature)
            rows.append({"beta": beta, "temperature": temperature, "loss": float(loss)})
    return {"student": numbers(student), "teacher": numbers(teacher), "labels": labels.tolist(), "rows": rows}


def distilbert(path: Path, generator: torch.Generator) -> dict:
    module = load(path, ("psutil", "grouped_batch_sampler", "lm_seqs_dataset", "utils", "tensorboardX"))
    s_logits, t_logits = (torch.randn(2, 4, 6, generator=generator).mul(2).round(decimals=6) for _ in range(2))
    s_hidden, t_hidden = (torch.randn(2, 4, 5, generator=generator).round(decimals=6) for _ in range(2))
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    labels = torch.tensor([[1, -100, 5, -100], [0, -100, -100, -100]])
    stub = types.SimpleNamespace(
        mlm=True, temperature=2.0, alpha_ce=5.0, alpha_mlm=2.0, alpha_clm=0.0, alpha_mse=0.0, alpha_cos=1.0,
        params=types.SimpleNamespace(restrict_ce_to_mask=False), total_loss_epoch=0.0, n_sequences_epoch=0,
        student=lambda input_ids, attention_mask: (s_logits, (s_hidden,)),
        teacher=lambda input_ids, attention_mask: (t_logits, (t_hidden,)),
        ce_loss_fct=torch.nn.KLDivLoss(reduction="batchmean"),
        lm_loss_fct=torch.nn.CrossEntropyLoss(ignore_index=-100),
        cosine_loss_fct=torch.nn.CosineEmbeddingLoss(reduction="mean"), optimize=lambda loss: None,
    )  # fmt: skip
    module.Distiller.step(stub, torch.zeros(2, 4), mask, labels)
    return {
        "s_logits": numbers(s_logits), "t_logits": numbers(t_logits), "s_hidden": numbers(s_hidden),
        "t_hidden": numbers(t_hidden), "lengths": [3, 2], "labels": labels.tolist(), "ce": stub.last_loss_ce,
        "mlm": stub.last_loss_mlm, "cos": stub.last_loss_cos, "total": stub.last_loss,
    }  # fmt: skip


def tiny(layers: int, width: int, seed: int) -> BertModel:
    torch.manual_seed(seed)
    return BertModel(BertConfig(
        vocab_size=20, hidden_size=width, num_hidden_layers=layers, num_attention_heads=HEADS, intermediate_size=20,
        max_position_embeddings=12, initializer_range=0.4, attn_implementation="eager",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )).eval()  # fmt: skip


@torch.no_grad()
def attended(model: BertModel, ids: torch.Tensor, mask: torch.Tensor, layer: int) -> dict[str, torch.Tensor]:
    hidden = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    attention = model.encoder.layer[layer].attention.self
    return {
        name: getattr(attention, part)(hidden[layer]).unflatten(-1, (HEADS, -1)).transpose(1, 2).round(decimals=6)
        for name, part in (("q", "query"), ("k", "key"), ("v", "value"))
    } | {"hidden": hidden[layer + 1].round(decimals=6)}  # fmt: skip


@torch.no_grad()
def minilm(
    path: Path, heads: int, relations: dict, student: BertModel, teacher: BertModel, ids: Any, mask: Any
) -> float:
    module = load(path, ())
    whole = module.MiniLM(
        teacher, student, teacher.config.num_hidden_layers, student.config.num_hidden_layers, relations, heads
    )  # fmt: skip
    return float(whole(ids, torch.zeros_like(ids), mask)[0])


def make(folder: Path) -> dict:
    generator = torch.Generator().manual_seed(0)
    found = {"jsd": jsd(generator), "distilbert": distilbert(folder / "distiller.py", generator)}
    student, teacher = tiny(1, 12, 1), tiny(2, 12, 2)
    ids = torch.randint(1, 20, (2, 5), generator=generator)
    for name, lengths in (("padded", [5, 3]), ("whole", [5, 5])):
        mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
        mine, theirs = attended(student, ids, mask, 0), attended(teacher, ids, mask, 1)
        case: dict[str, Any] = {"lengths": lengths}
        for side, tensors in (("student", mine), ("teacher", theirs)):
            case[side] = {part: numbers(tensor) for part, tensor in tensors.items()}
        files = folder / "minilmv2.py"
        case["minilm"] = minilm(files, HEADS, {(1, 2): 1.0, (3, 3): 1.0}, student, teacher, ids, mask)
        ones = {(1, 1): 1.0, (2, 2): 1.0, (3, 3): 1.0}
        case["minilm2"] = {str(heads): minilm(files, heads, ones, student, teacher, ids, mask) for heads in (2, 3, 6)}
        if name == "whole":
            scores = [side["q"] @ side["k"].transpose(-1, -2) / side["q"].shape[-1] ** 0.5 for side in (mine, theirs)]
            case["tinybert_attention"] = float(torch.nn.MSELoss()(*scores))
            case["tinybert_states"] = float(torch.nn.MSELoss()(mine["hidden"], theirs["hidden"]))
        found[name] = case
    return found


if __name__ == "__main__":
    OUT.write_text(json.dumps(make(Path(sys.argv[1]))) + "\n", encoding="utf-8")
