"""BERT's vocab.txt: one token a line, its id the line's number (google-research/bert, tokenization.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DamagedFile
from dacheng.text.vocabularies.vocabulary import Vocabulary, add_tokens, build, read_text, roles

if TYPE_CHECKING:
    from dacheng.text.tokenizer import Tokenizer

_ROLES = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip


def read_wordpiece(path: Path, *, lowercase: bool = True, config: Mapping[str, Any] | None = None) -> Vocabulary:
    """See `tokenizer_from_wordpiece`. config: do_lower_case, strip_accents, tokenize_chinese_chars come before."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    config = config or {}
    names = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    while names and not names[-1]:
        names.pop()
    vocab = {name: i for i, name in enumerate(names)}
    present = {role: token for role, token in _ROLES.items() if token in vocab}
    for token in ("[UNK]", "[CLS]", "[SEP]"):
        if token not in vocab:
            raise DamagedFile(f"{path} has no {token}: it is no WordPiece vocabulary, or not whole", field="vocab",
                              value=token, remedy="copy the file from its source again")  # fmt: skip
    core = Core(build(lambda: models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100), "vocab"))
    core.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(config.get("do_lower_case", lowercase)),
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )  # fmt: skip
    add_tokens(core, present.values())
    return Vocabulary(core, roles(**present))


def tokenizer_from_wordpiece(path: Path | str, *, lowercase: bool = True, **tokens: str | None) -> Tokenizer:
    """A tokenizer of BERT's vocab.txt. lowercase: as the "uncased" models; Chinese ones are cased.

    tokens: other roles than the file's; EOS is [SEP] unless given, for BERT has none.
    Raises DamagedFile naming the token that is not there; DachengError when the file cannot be opened.
    """
    return read_wordpiece(Path(path), lowercase=lowercase).tokenizer(**({"eos_token": "[SEP]"} | tokens))
