"""Live against transformers, where it is installed beside dacheng: `pytest -m peer tests/formats`."""

from __future__ import annotations

import pytest
import torch

from dacheng.formats.encoders import load_encoder, save_encoder
from dacheng.models.encoder import Encoder, EncoderTraits
from dacheng.nn.contexts import Bidirectional
from dacheng.text import Tokenizer
from dacheng.text.vocabularies.wordpiece import tokenizer_from_wordpiece

pytestmark = pytest.mark.peer
transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "##s", "run", ".", "中", "国"]


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return tokenizer_from_wordpiece(tmp_path / "vocab.txt")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "changes",
    [{"pooler": True}, {"pooler": True, "activation": "relu", "token_types": 1, "heads": 2, "norm_eps": 1e-3}],
    ids=["bert", "relu"],
)
@torch.no_grad()
def test_transformers_loads_what_we_write(tmp_path, tokenizer, changes, seed):
    traits = EncoderTraits(
        vocab_size=len(WORDS),
        **({"width": 24, "layers": 2, "heads": 3, "mlp_width": 40, "max_positions": 24} | changes),
    )
    model, generator = Encoder(traits), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.normal_(1.0 if "norm.weight" in name else 0.0, 0.3, generator=generator)
    save_encoder(tmp_path / "m", model.eval(), tokenizer)
    peer, report = transformers.AutoModel.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert type(peer).__name__ == "BertModel" and not report["missing_keys"] and not report["unexpected_keys"]
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    texts = ["The cats run.", "dog", "中国 the zebra"]
    batch = their_tokenizer(texts, padding=True, return_tensors="pt")
    rows = load_encoder(tmp_path / "m").tokenizer.encode_batch(texts, add_special_tokens=True)
    lengths = batch.attention_mask.sum(1)
    assert rows == [ids[:n].tolist() for ids, n in zip(batch.input_ids, lengths)]
    found = peer.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    positions = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
    hidden = model(batch.input_ids, positions, Bidirectional(lengths))
    real = batch.attention_mask[..., None]
    assert ((hidden - found.last_hidden_state) * real).abs().max() < 1e-4
    assert (model.pooled_output(hidden) - found.pooler_output).abs().max() < 1e-4
