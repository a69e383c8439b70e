"""transformers reads what is saved, and answers the same; what it writes is read back."""

from __future__ import annotations

import json

import pytest
from text_corpora import HARD, MIXED

from dacheng.text import Tokenizer

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def test_transformers_loads_what_is_saved(transformers, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for cls in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        peer = cls.from_pretrained(tmp_path)
        assert (peer.eos_token_id, peer.pad_token_id, peer.bos_token_id) == (tokenizer.eos_id, tokenizer.pad_id, None)
        assert len(peer) == tokenizer.vocab_size
        for text in [*HARD, MIXED[0]]:
            ids = tokenizer.encode(text)
            assert peer.encode(text, split_special_tokens=True) == ids
            assert peer.encode(text) == tokenizer.encode(text, allow_special=True)
            assert peer.decode(ids) == text


def test_what_transformers_saves_again_is_the_same_tokenizer(transformers, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "ours")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = Tokenizer.load(tmp_path / "theirs")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode_batch(HARD) == tokenizer.encode_batch(HARD)


def test_transformers_finds_the_chat_template(transformers, trained, tmp_path):
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    trained["bpe"].save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    Tokenizer.load(tmp_path).save(tmp_path / "again")
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert peer.apply_chat_template([{"role": "user", "content": "你好"}], tokenize=False) == "user: 你好\n"


def test_the_goldens_are_what_transformers_answers_now(transformers, goldens):
    for expected in sorted(goldens.glob("tokenizers/*/expected.json")):
        peer = transformers.PreTrainedTokenizerFast.from_pretrained(expected.parent)
        for row in json.loads(expected.read_text())["texts"]:
            assert peer.encode(row["text"], add_special_tokens=False) == row["special"]
            assert peer.encode(row["text"], add_special_tokens=False, split_special_tokens=True) == row["plain"]
            assert peer.decode(row["special"]) == row["decoded_special"]
