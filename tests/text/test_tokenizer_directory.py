"""Directories in Hugging Face layout: other families' answers, where special tokens are named, and damage."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.errors import DachengError, DamagedFile
from dacheng.text import Tokenizer

FAMILIES = {  # what to say at loading, and the padding that is chosen where the family names none
    "gpt2": ({}, "<|endoftext|>"),
    "gpt2_chat": ({}, "<|endoftext|>"),
    "llama": ({}, "<unk>"),
    "llama_no_prefix": ({}, "<unk>"),
    "t5": ({}, "<pad>"),
    "bert": ({"eos_token": "[SEP]"}, "[PAD]"),
}


@pytest.fixture(params=sorted(FAMILIES))
def family(request, goldens):
    """(tokenizer, expected answers of transformers, name)"""
    directory = goldens / "tokenizers" / request.param
    options, _ = FAMILIES[request.param]
    return Tokenizer.load(directory, **options), json.loads((directory / "expected.json").read_text()), request.param


@pytest.fixture
def llama(goldens, tmp_path):
    """A copy to damage."""
    shutil.copytree(goldens / "tokenizers" / "llama", tmp_path / "llama")
    return tmp_path / "llama"


def edit(path, **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (content | changes).items() if v is not ...}))


@pytest.mark.oracle
def test_ids_and_text_are_those_of_transformers(family):
    tokenizer, expected, name = family
    assert tokenizer.vocab_size == expected["size"]
    for row in expected["texts"]:
        text = row["text"]
        assert tokenizer.encode(text, allow_special=True) == row["special"]
        if not (name == "t5" and "</s>" in text):  # there transformers lets the text end the text
            assert tokenizer.encode(text) == row["plain"]
            assert tokenizer.encode(text, add_special_tokens=True) == row["around"]
        assert tokenizer.decode(row["special"]) == row["decoded"]
        assert tokenizer.decode(row["special"], skip_special_tokens=False) == row["decoded_special"]
        assert (tokenizer.special_ids - {tokenizer.unk_id}).isdisjoint(tokenizer.encode(text))


@pytest.mark.oracle
def test_special_ids_are_those_of_transformers(family):
    tokenizer, expected, name = family
    roles = expected["roles"]
    assert tokenizer.bos_id == roles["bos"]
    assert tokenizer.unk_id == roles["unk"]
    assert tokenizer.eos_id == (roles["eos"] if name != "bert" else tokenizer.token_to_id("[SEP]"))
    assert tokenizer.pad_id == tokenizer.token_to_id(FAMILIES[name][1])
    assert roles["pad"] in (tokenizer.pad_id, None)
    assert sorted(tokenizer.special_ids) == expected["all_special_ids"]


def test_a_stream_is_the_decoded_text(family):
    tokenizer, expected, name = family
    for row in expected["texts"]:
        for skip in (True, False):
            decoder = tokenizer.stream_decoder(skip_special_tokens=skip)
            text = "".join(map(decoder.push, row["special"])) + decoder.finish()
            assert text == tokenizer.decode(row["special"], skip_special_tokens=skip) or name == "bert"


def test_saving_keeps_what_was_loaded(family, tmp_path):
    tokenizer, expected, _ = family
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.config == tokenizer.config
    texts = [row["text"] for row in expected["texts"]]
    assert again.encode_batch(texts, True) == tokenizer.encode_batch(texts, True)


def test_byte_tokens_are_bytes(goldens):
    llama = Tokenizer.load(goldens / "tokenizers" / "llama")
    assert [llama.token_bytes(llama.token_to_id(f"<0x{byte:02X}>")) for byte in range(256)] == [
        bytes([byte]) for byte in range(256)
    ]
    assert llama.token_bytes(llama.token_to_id("▁fox")) == b" fox"
    assert b"".join(map(llama.token_bytes, llama.encode("a fox 👩"))) == " a fox 👩".encode()
    gpt2 = Tokenizer.load(goldens / "tokenizers" / "gpt2_chat")
    assert gpt2.token_bytes(gpt2.token_to_id("<think>")) == b"<think>"  # added, and not special
    bert = Tokenizer.load(goldens / "tokenizers" / "bert", eos_token="[SEP]")
    assert bert.token_bytes(bert.token_to_id("##o")) == b"o"
    assert bert.token_bytes(bert.token_to_id("fox")) == b" fox"


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=30))
def test_byte_fallback_gives_any_text_back(goldens, text):
    tokenizer = Tokenizer.load(goldens / "tokenizers" / "llama_no_prefix")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_chat_template_comes_from_its_own_file_and_is_kept(goldens, tmp_path):
    directory = goldens / "tokenizers" / "gpt2_chat"
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.chat_template == (directory / "chat_template.jinja").read_text()
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template == tokenizer.chat_template
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "chat_template.jinja").write_text("{{ 1 }}")
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 2 }}")
    several = Tokenizer.load(tmp_path)
    assert several.chat_template == "{{ 1 }}"
    assert {"name": "tool_use", "template": "{{ 2 }}"} in several.config["chat_template"]


# --- where special tokens are named -----------------------------------------------------------------------------------
@pytest.mark.parametrize("value", ["</s>", {"__type": "AddedToken", "content": "</s>", "lstrip": False}])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_eos_is_found_as_name_or_dict_in_either_file(llama, value, file):
    edit(llama / "tokenizer_config.json", eos_token=None)
    edit(llama / file, eos_token=value)
    tokenizer = Tokenizer.load(llama)
    assert tokenizer.eos_id == 2
    tokenizer.save(llama / "again")
    assert Tokenizer.load(llama / "again").eos_id == 2


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [2, [2, 1]])
def test_eos_is_found_in_the_configuration_of_the_model(llama, file, value):
    edit(llama / "tokenizer_config.json", eos_token=...)
    edit(llama / file, eos_token_id=value)
    assert Tokenizer.load(llama).eos_id == 2


def test_no_eos_is_refused_with_the_way_out(goldens, llama):
    edit(llama / "config.json", eos_token_id=-1)
    for directory in (goldens / "tokenizers" / "bert", llama):
        if directory == llama:
            edit(llama / "tokenizer_config.json", eos_token=...)
        with pytest.raises(DachengError, match="no end-of-text token") as caught:
            Tokenizer.load(directory)
        assert "eos_token=" in caught.value.remedy
    assert Tokenizer.load(llama, eos_token="<s>").eos_id == 1


def test_what_only_the_configuration_calls_special_is_special(llama):
    edit(llama / "tokenizer.json", added_tokens=[])
    edit(llama / "tokenizer_config.json", additional_special_tokens=["the"], extra_special_tokens={"image": "<0x00>"})
    tokenizer = Tokenizer.load(llama)
    assert set(tokenizer.special_tokens) == {"</s>", "<s>", "<unk>", "the", "<0x00>"}
    the = tokenizer.token_to_id("the")
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("lathe</s>"))  # the model's own merges would make "the"
    assert tokenizer.decode(tokenizer.encode("lathe</s>")) == "lathe</s>"
    assert {2, the} <= set(tokenizer.encode("lathe</s>", allow_special=True))


def test_truncation_and_padding_in_the_file_are_switched_off(llama):
    truncation = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    padding = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
    }
    plain = Tokenizer.load(llama).encode("The quick brown fox jumps")
    edit(llama / "tokenizer.json", truncation=truncation, padding=padding | {"pad_token": "<unk>"})
    assert Tokenizer.load(llama).encode("The quick brown fox jumps") == plain
    assert len(plain) > 4


# --- damage -----------------------------------------------------------------------------------------------------------
def test_a_missing_tokenizer_says_what_is_there(tmp_path):
    with pytest.raises(DachengError, match=r"has no tokenizer\.json") as caught:
        Tokenizer.load(tmp_path / "nowhere")
    assert "name the directory" in caught.value.remedy
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"x")  # XLM-R's, whose ids are not SentencePiece's
    with pytest.raises(DachengError, match=r"only sentencepiece\.bpe\.model") as caught:
        Tokenizer.load(tmp_path)
    assert "save_pretrained" in caught.value.remedy
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(DamagedFile, match=r"tokenizer\.model"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_damaged_file_is_named(llama, name, content):
    (llama / name).write_bytes(content)
    with pytest.raises(DamagedFile) as caught:
        Tokenizer.load(llama)
    assert caught.value.value == name
    assert str(llama) in caught.value.problem


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eos_token", 7),
        ("eos_token", ""),
        ("pad_token", {"no": "content"}),
        ("additional_special_tokens", "<a>"),
        ("extra_special_tokens", [3]),
        ("added_tokens_decoder", ["<a>"]),
        ("added_tokens_decoder", {"one": {"content": "<s>"}}),
        ("added_tokens_decoder", {"1": 5}),
    ],
)
def test_a_damaged_field_is_named(llama, field, value):
    edit(llama / "tokenizer_config.json", **{field: value})
    with pytest.raises(DamagedFile) as caught:
        Tokenizer.load(llama)
    assert caught.value.field == field
    assert str(llama) in caught.value.problem


def test_files_of_two_models_are_noticed(llama):
    edit(llama / "tokenizer_config.json", pad_token="<|pad|>")
    with pytest.raises(DamagedFile, match="no such token") as caught:
        Tokenizer.load(llama)
    assert caught.value.value == "<|pad|>"
    edit(llama / "tokenizer_config.json", pad_token=None, added_tokens_decoder={"9": {"content": "<s>"}})
    with pytest.raises(DamagedFile, match=r"<s> with the id 9; tokenizer\.json gives it the id 1"):
        Tokenizer.load(llama)


def test_any_truncation_or_flipped_bit_loads_or_is_refused(llama):
    draw, path = random.Random(0), llama / "tokenizer.json"
    content, refused = path.read_bytes(), 0
    for i in range(120):
        broken = bytearray(content[: draw.randrange(len(content))] if i % 3 == 0 else content)
        if i % 3:
            broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        try:
            Tokenizer.load(llama).encode("The quick brown fox </s> 夜来")
        except DachengError:
            refused += 1
    assert refused >= 40
