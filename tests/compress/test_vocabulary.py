"""A smaller vocabulary cuts the same texts in the same places, and its model says the same of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from formats_of_tests import smollm2_path
from test_shrink import LLAMA, drawn, logits

from dacheng.compress.measure import read_text
from dacheng.compress.prune.keep import Keep
from dacheng.compress.prune.shrink import shrink
from dacheng.compress.prune.vocabulary import (
    prune_vocabulary,
    renumbered_settings,
    token_counts,
    tokens_of_chats,
)
from dacheng.errors import UsageError
from dacheng.formats.model_directory import load_model, load_tokenizer, save_model
from dacheng.text import ChatRenderer, Tokenizer, train_tokenizer

TEXTS = [
    "the small model learns what the larger model knows",
    "models that are smaller answer faster, and models that are larger answer better",
    "a tokenizer cuts words into parts: smaller, smallest, small; learn, learns, learner",
] * 3
OTHER = "Ünknown wörds, 中文 and symbols ∑ are spelt byte by byte\n\tlearner!"


def pieces(tokenizer, text):
    return [tokenizer.id_to_token(i) for i in tokenizer.encode(text)]


def kept_of(tokenizer, texts):
    return token_counts(tokenizer, texts).nonzero()[0].tolist()


def test_byte_bpe():
    whole = train_tokenizer(
        [*TEXTS, *[OTHER * 5] * 20, "entirely different things happen here today " * 50], vocab_size=500
    )
    small, ids = prune_vocabulary(whole, kept_of(whole, TEXTS[:2]))
    assert small.vocab_size == len(ids) < whole.vocab_size and small.eos_id == ids.index(whole.eos_id)
    for text in TEXTS[:2]:
        assert pieces(small, text) == pieces(whole, text)
        assert [ids[i] for i in small.encode(text)] == whole.encode(text)
    assert small.decode(small.encode(OTHER)) == OTHER  # every byte is still there
    assert len(small.encode(OTHER)) > len(whole.encode(OTHER))


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_other_kinds(kind):
    from tokenizers import Tokenizer as Core
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    if kind == "WordPiece":
        core = Core(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(vocab_size=140, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
        core.normalizer = normalizers.Lowercase()
        core.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        core = Core(models.Unigram())
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="[UNK]")
        core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.train_from_iterator(TEXTS, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", core.token_to_id("[CLS]")), ("[SEP]", core.token_to_id("[SEP]"))],
    )
    whole = Tokenizer(core, eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", config={"cls_token": "[CLS]"})
    small, ids = prune_vocabulary(whole, kept_of(whole, TEXTS[:1]))
    assert len(ids) < whole.vocab_size
    for special in (False, True):
        found = small.encode(TEXTS[0], add_special_tokens=special)
        assert [ids[i] for i in found] == whole.encode(TEXTS[0], add_special_tokens=special)
    assert small.pad_id == ids.index(whole.pad_id) and small.unk_id == ids.index(whole.unk_id)


def test_the_model_goes_along(tmp_path):
    whole = train_tokenizer([*TEXTS, "entirely different things happen here today " * 50], vocab_size=400)
    model = drawn(replace(LLAMA, vocab_size=whole.vocab_size, width=60)).float()
    small, ids = prune_vocabulary(whole, kept_of(whole, TEXTS[:2]))
    cut = shrink(model, Keep(vocabulary=ids))
    save_model(tmp_path / "m", cut, small)
    loaded = load_model(tmp_path / "m")
    row = torch.tensor([loaded.tokenizer.encode(TEXTS[0])])
    expected = logits(model, torch.tensor([whole.encode(TEXTS[0])]))[..., list(ids)]
    assert torch.allclose(logits(loaded.model, row), expected, atol=1e-5)
    assert load_tokenizer(tmp_path / "m").fingerprint == small.fingerprint


def test_settings_of_generation_name_the_new_ids():
    settings = {"eos_token_id": [2, 9], "pad_token_id": 9, "bos_token_id": 1, "max_new_tokens": 9, "temperature": 0.7}
    found = renumbered_settings(settings, (0, 2, 5, 9))
    assert found == {"eos_token_id": [1, 3], "pad_token_id": 3, "max_new_tokens": 9, "temperature": 0.7}


def test_numbers_of_tokens_are_no_ids_and_forbidden_words_are_renumbered():
    settings = {"num_assistant_tokens": 5, "bad_words_ids": [[2], [3, 9], [5, 9]], "suppress_tokens": [2, 3]}
    found = renumbered_settings(settings, (0, 2, 5, 9))
    assert found == {"num_assistant_tokens": 5, "bad_words_ids": [[1], [2, 3]], "suppress_tokens": [1]}


def test_characters_that_end_a_word_stay():
    """BPE with a mark of a word's end, as CLIP's: "c" and "c</w>" are two characters."""
    from tokenizers import Tokenizer as Core
    from tokenizers import models, pre_tokenizers, trainers

    core = Core(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    core.train_from_iterator([*TEXTS, "abc xyz qpd"], trainer)
    whole = Tokenizer(core, eos_token="<eos>", unk_token="<unk>")
    small, _ = prune_vocabulary(whole, kept_of(whole, TEXTS[:1]))
    assert small.vocab_size < whole.vocab_size and pieces(small, "xyz") == ["x", "y", "z</w>"]


def test_what_a_chat_is_written_in_stays():
    """No text of one field holds "user" and "assistant": without their tokens every conversation would begin spelt."""
    from distil_toys import tokenizer

    whole = tokenizer()
    chat = [{"role": "user", "content": "red"}]
    small, ids = prune_vocabulary(whole, [*whole.encode("red"), *tokens_of_chats(whole)])
    rendered = ChatRenderer(small).render(chat, add_generation_prompt=True).token_ids
    assert [ids[i] for i in rendered] == ChatRenderer(whole).render(chat, add_generation_prompt=True).token_ids
    assert len(ids) < whole.vocab_size and tokens_of_chats(train_tokenizer(TEXTS, vocab_size=300)) == []


def test_ids_outside_are_refused():
    whole = train_tokenizer(TEXTS, vocab_size=300)
    for wrong in (-1, 10**6):
        with pytest.raises(UsageError, match="no token has this id") as error:
            prune_vocabulary(whole, [0, wrong, 5])
        assert error.value.value == wrong


def test_a_real_tokenizer(shared_data):
    """SmolLM2's 49,152 tokens, cut to those of some hundred lines."""
    whole = load_tokenizer(smollm2_path())
    path = next(iter(sorted((shared_data / "wikitext2").glob("valid*"))), None)
    if path is None:
        pytest.skip("WikiText-2 is absent")
    lines = read_text(path).splitlines()[:300]
    small, ids = prune_vocabulary(whole, kept_of(whole, lines))
    assert len(ids) < 0.4 * whole.vocab_size
    for line in lines[::7]:
        assert [ids[i] for i in small.encode(line)] == whole.encode(line)
    named = {name: ids.index(i) for name, i in whole.special_tokens.items()}
    assert small.special_tokens == named and small.chat_template == whole.chat_template
