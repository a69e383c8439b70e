"""Which reader a model directory without tokenizer.json needs, and what its other files say of the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, DamagedFile
from dacheng.text.vocabularies.byte_level import read_gpt2, split_of_class
from dacheng.text.vocabularies.sentencepiece import read_sentencepiece
from dacheng.text.vocabularies.tekken import read_tekken
from dacheng.text.vocabularies.tiktoken import is_rank_file, read_tiktoken
from dacheng.text.vocabularies.vocabulary import Vocabulary, read_json, surround
from dacheng.text.vocabularies.wordpiece import read_wordpiece

# Classes that take a SentencePiece model as it is. Others shift its ids, or rewrite the text first.
_AS_IT_IS = ("LlamaTokenizer", "GemmaTokenizer", "CodeLlamaTokenizer", "PreTrainedTokenizer")


def read_vocabulary(directory: Path, config: Mapping[str, Any]) -> Vocabulary | None:
    """The vocabulary of `directory`; None when it has none of the formats that are read here.

    config: of tokenizer_config.json and its kin; what it names comes before what the vocabulary says.
    Raises DamagedFile naming file and field; DachengError for a class whose ids a reader would get wrong.
    """
    try:
        found = _read(directory, config)
        if found is None:
            return None
        config = found.config | {name: value for name, value in config.items() if value is not None}
        _add_declared(found.core, directory, config)
        surround(found.core, config)
        return Vocabulary(found.core, config)
    except DamagedFile as error:
        problem = error.problem if str(directory) in error.problem else f"{directory}: {error.problem}"
        raise DamagedFile(problem, field=error.field, value=error.value, remedy=error.remedy) from None


def _read(directory: Path, config: Mapping[str, Any]) -> Vocabulary | None:
    def first(*patterns: str) -> Path | None:
        return next((path for pattern in patterns for path in sorted(directory.glob(pattern)) if path.is_file()), None)

    if path := first("*tekken*.json"):
        return read_tekken(path)
    if path := first("*.tiktoken"):
        return read_tiktoken(path)
    if path := first("tokenizer.model", "spiece.model"):
        with path.open("rb") as file:
            start = file.read(200)
        if is_rank_file(start):
            return read_tiktoken(path)
        name = str(config.get("tokenizer_class") or "LlamaTokenizer").removesuffix("Fast")
        if name not in _AS_IT_IS:
            raise DachengError(
                f"{name} changes the ids of {path.name}, or the text before it, in a way that is not known here",
                field="tokenizer_class", value=name,
                remedy="load it with transformers and save it again as tokenizer.json, "
                "or take the model as it is with tokenizer_from_sentencepiece(path)",
            )  # fmt: skip
        return read_sentencepiece(path)
    vocab, merges, words = (directory / name for name in ("vocab.json", "merges.txt", "vocab.txt"))
    if vocab.is_file() and merges.is_file():
        return read_gpt2(vocab, merges, split_of_class(config), config=config)
    if words.is_file():
        return read_wordpiece(words, config=config)
    return None


def _add_declared(core: Any, directory: Path, config: Mapping[str, Any]) -> None:
    """Tokens that were added after training: added_tokens_decoder of tokenizer_config.json, or added_tokens.json.

    A token that the vocabulary has keeps its id; new ones get the ids behind it, which must be those declared.
    """
    from tokenizers import AddedToken

    declared: dict[int, AddedToken] = {}
    entries = config.get("added_tokens_decoder")
    for key, entry in (entries if isinstance(entries, Mapping) else {}).items():
        if str(key).isdecimal() and isinstance(entry, Mapping) and isinstance(entry.get("content"), str):
            flags = {
                name: bool(entry.get(name, False))
                for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            declared[int(key)] = AddedToken(entry["content"], **flags)
    path = directory / "added_tokens.json"
    for name, token_id in (read_json(path) if not declared and path.is_file() else {}).items():
        if type(token_id) is not int:
            raise DamagedFile(f"{path} maps a token to no id", field=name, value=token_id, remedy="write its id")
        declared[token_id] = AddedToken(name, normalized=False)
    size = core.get_vocab_size(with_added_tokens=True)
    for token_id, token in sorted(declared.items()):
        if (known := core.token_to_id(token.content)) is None:
            known, size = size, size + 1
        if known != token_id:
            raise DamagedFile(
                f"the token {token.content} is declared with the id {token_id} and gets {known}",
                field="added_tokens_decoder", value=token.content, remedy="take all files from the same model",
            )  # fmt: skip
    core.add_tokens([token for _, token in sorted(declared.items())])
