"""A tokenizer: text to token ids and back, in the Hugging Face layout on disk."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Core

from dacheng.errors import DachengError, DamagedFile, UsageError
from dacheng.text import directory as files
from dacheng.text.byte_bpe import utf8
from dacheng.text.streaming import StreamDecoder
from dacheng.text.token_bytes import TokenBytes, token_bytes

if TYPE_CHECKING:
    import numpy as np


class Tokenizer:
    """Around a `tokenizers.Tokenizer`: any tokenizer.json, with what a language model needs to know of it.

    vocab_size: one more than the greatest id. eos_id ends a document; pad_id fills a batch; bos_id and unk_id are None
    where the family has no such token. `special_ids` is all ids that stand for no text. `config` is what
    tokenizer_config.json says (chat template included); it is kept and written back.

    Tokenizers that dacheng trains have different EOS and PAD and give any text back unchanged. Loaded families do as
    they do: some change the text (lower case, Unicode normal form), and where none is set for padding, pad_id is a
    token with "pad" in its name, else UNK, else EOS.

    The object does not change, is safe to use from several threads, and can be sent to other processes.
    """

    def __init__(
        self,
        core: Core,
        *,
        eos_token: str | None = None,
        bos_token: str | None = None,
        pad_token: str | None = None,
        unk_token: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """core belongs to the new object. Each token must be in its vocabulary; None leaves it to `config`.

        Raises DachengError when there is no EOS, DamagedFile when a special token is not in the vocabulary.
        """
        self.config = dict(config or {})
        named = {"eos_token": eos_token, "bos_token": bos_token, "pad_token": pad_token, "unk_token": unk_token}
        self.config |= {role: token for role, token in named.items() if token is not None}
        if files.token_name(self.config, "eos_token") is None:
            raise DachengError(
                "this tokenizer has no end-of-text token",
                field="eos_token", remedy='say which it is: Tokenizer.load(directory, eos_token="[SEP]")',
            )  # fmt: skip
        self._core = core
        _mark_special(core, self.config)
        core.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        self._vocab: dict[str, int] = core.get_vocab(with_added_tokens=True)
        self.vocab_size: int = _size(self._vocab)
        added = core.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {added[i].content: i for i in sorted(added) if added[i].special}
        self.special_ids = frozenset(self.special_tokens.values())
        ids = {role: self._vocab.get(files.token_name(self.config, role) or "") for role in named}
        eos_id, self.bos_id, self.unk_id = ids["eos_token"], ids["bos_token"], ids["unk_token"]
        assert eos_id is not None  # _mark_special has looked
        self.eos_id: int = eos_id
        self.pad_id: int = self._pad_id(ids["pad_token"])
        # UNK is what a family writes for text that it cannot spell; any other special id in plain text is an accident.
        only_unknown = {self.unk_id} - {self.eos_id, self.bos_id, ids["pad_token"]}
        self._forbidden = self.special_ids - only_unknown

    def _pad_id(self, configured: int | None) -> int:
        if configured is not None:
            return configured
        named = [i for name, i in self.special_tokens.items() if "pad" in name.lower()]
        return named[0] if named else self.eos_id if self.unk_id is None else self.unk_id

    def __repr__(self) -> str:
        return f"Tokenizer({type(self._core.model).__name__}, vocab_size={self.vocab_size})"

    def __reduce__(self):
        return (_restore, (self._core.to_str(), self.config))

    # --- text to ids --------------------------------------------------------------------------------------------------
    def encode(self, text: str, allow_special: bool = False, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of one text.

        allow_special: names of special tokens in the text become their ids; otherwise they are text as any other.
        add_special_tokens: put around it what the family puts around a text (BOS, [CLS] … [SEP]), often nothing.
        Raises UsageError when `text` is no string, or holds half a surrogate pair.
        """
        return self.encode_batch([text], allow_special, add_special_tokens=add_special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], allow_special: bool = False, *, add_special_tokens: bool = False
    ) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        if isinstance(texts, str):
            raise UsageError("expected a list of texts", field="texts", value=texts, remedy="use encode for one text")
        texts = list(texts)
        core = self._reading_special if allow_special else self._core
        try:
            rows = [encoding.ids for encoding in core.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:
            raise _why_not(texts, error) from error
        if not allow_special:
            forbidden = self._forbidden
            rows = [row if forbidden.isdisjoint(row) else self._spell_out(text) for row, text in zip(rows, texts)]
        if add_special_tokens:
            before, after = self._around
            rows = [before + row + after for row in rows]
        return rows

    @cached_property
    def _reading_special(self) -> Core:
        """A second one, because the switch is a state of the object, which other threads may be using."""
        return Core.from_str(self._core.to_str())

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What the family's post-processor puts before and behind a text."""
        sample = self._core.encode("a", add_special_tokens=False).ids
        whole = self._core.encode("a", add_special_tokens=True).ids
        for start in range(len(whole) - len(sample) + 1):
            if whole[start : start + len(sample)] == sample:
                return whole[:start], whole[start + len(sample) :]
        raise DachengError(
            "this tokenizer's post-processor does more than put tokens around a text",
            field="post_processor", remedy="add the special ids yourself",
        )  # fmt: skip

    def _spell_out(self, text: str) -> list[int]:
        """For models that would read a special token's name as that token (Unigram has it among its pieces): wherever
        it stands, the name is cut after its first character, and both sides are encoded by themselves."""
        core = self._core
        normal = core.normalizer.normalize_str(text) if core.normalizer else text
        pieces = [piece for piece, _ in core.pre_tokenizer.pre_tokenize_str(normal)] if core.pre_tokenizer else [normal]
        ids: list[int] = []
        waiting = deque(pieces)
        while waiting:
            piece = waiting.popleft()
            tokens = core.model.tokenize(piece)
            name = next((token.value for token in tokens if token.id in self._forbidden), None)
            if name is None:
                ids += [token.id for token in tokens]
                continue
            if len(name) == 1 or name not in piece:
                raise DachengError(
                    "this tokenizer can only write a part of the text as a special token",
                    field="text", value=name, remedy="remove it from the text, or encode with allow_special=True",
                )  # fmt: skip
            first, *middle, last = piece.split(name)
            cut = [first + name[0], *(name[1:] + part + name[0] for part in middle), name[1:] + last]
            waiting.extendleft(reversed(cut))
        return ids

    # --- ids to text --------------------------------------------------------------------------------------------------
    @cached_property
    def _bytes(self) -> TokenBytes:
        found = token_bytes(self._core, self.vocab_size)
        for token_id in self.special_ids:
            found.table[token_id] = b""
        return found

    @cached_property
    def _bytes_with_special(self) -> list[bytes]:
        names = {token_id: name.encode("utf-8") for name, token_id in self.special_tokens.items()}
        return [names.get(token_id, piece) for token_id, piece in enumerate(self._bytes.table)]

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that a token stands for, possibly a part of a character; b"" for special tokens.

        Raises UsageError on an id outside the vocabulary.
        """
        self._check([token_id])
        return self._bytes.table[token_id]

    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,) int64: len(token_bytes(id)) of every id. Summed over the tokens of a text, its length in UTF-8:
        what turns nats per token into bits per byte."""
        import numpy as np

        return np.array([len(piece) for piece in self._bytes.table], dtype=np.int64)

    def decode_bytes(self, ids: Iterable[int], skip_special_tokens: bool = True) -> bytes:
        """token_bytes of each id, joined; with skip_special_tokens=False, special tokens by name."""
        ids = list(ids)
        self._check(ids)
        table = self._bytes.table if skip_special_tokens else self._bytes_with_special
        return b"".join([table[token_id] for token_id in ids])

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of the ids. Bytes that are no UTF-8 become U+FFFD. Raises UsageError on an id outside the vocabulary."""
        if not self._bytes.exact:
            ids = [int(token_id) for token_id in ids]
            self._check(ids)
            return self._core.decode(ids, skip_special_tokens=skip_special_tokens)
        text = self.decode_bytes(ids, skip_special_tokens).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._bytes.drop_first_space else text

    def stream_decoder(self, skip_special_tokens: bool = True) -> StreamDecoder:
        """Decodes ids one at a time, never showing half a character."""
        table = self._bytes.table if skip_special_tokens else self._bytes_with_special

        def bytes_of(token_id: int) -> bytes:
            self._check([token_id])
            return table[token_id]

        return StreamDecoder(bytes_of, drop_first_space=self._bytes.drop_first_space)

    def _check(self, ids: Sequence[int]) -> None:
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):  # -1 would count from the end of a table
            wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise UsageError(
                "no token has this id", field="id", value=wrong, remedy=f"ids are 0 to {self.vocab_size - 1}"
            )

    # --- names --------------------------------------------------------------------------------------------------------
    def token_to_id(self, token: str) -> int | None:
        """The id of a token as it is spelled in tokenizer.json ("Ġthe", "<|endoftext|>"); None if there is none."""
        return self._vocab.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The spelling in tokenizer.json; None for an id without token."""
        return self._core.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None

    @property
    def chat_template(self) -> str | None:
        """The Jinja template stored with the tokenizer: of several, the one named "default"."""
        found = self.config.get("chat_template")
        if isinstance(found, list):
            return next((entry["template"] for entry in found if entry.get("name") == "default"), None)
        return found

    # --- on disk ------------------------------------------------------------------------------------------------------
    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that decides which ids a text gets, what they stand for, and which are EOS, BOS and PAD.

        The post-processor is no part of it (`encode` leaves it out unless asked, and transformers adds one that does
        nothing), nor is the chat template.
        """
        content = json.loads(self._core.to_str())
        parts = [content[part] for part in ("normalizer", "pre_tokenizer", "model", "added_tokens", "decoder")]
        parts += [self.eos_id, self.bos_id, self.pad_id]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads."""
        class_name = {"tokenizer_class": "PreTrainedTokenizerFast"}
        files.write_directory(Path(directory), self._core, class_name | self.config)

    @classmethod
    def load(
        cls,
        directory: Path | str,
        *,
        eos_token: str | None = None,
        bos_token: str | None = None,
        pad_token: str | None = None,
    ) -> Tokenizer:
        """Reads a directory in Hugging Face layout: tokenizer.json, and the special tokens from tokenizer_config.json,
        special_tokens_map.json or, for EOS, the model's configuration. Arguments come before what the files say.
        Without tokenizer.json: tekken.json, *.tiktoken, tokenizer.model, spiece.model, vocab.json with merges.txt, or
        vocab.txt (see text/vocabularies).

        Raises DachengError when there is no tokenizer or no EOS, DamagedFile when a file is damaged.
        """
        directory = Path(directory)
        core, config = files.read(directory)
        try:
            if eos_token is None and files.token_name(config, "eos_token") is None:
                eos_id = files.model_eos_id(directory)
                eos_token = None if eos_id is None else core.id_to_token(eos_id)
            return cls(core, eos_token=eos_token, bos_token=bos_token, pad_token=pad_token, config=config)
        except DamagedFile as error:
            problem = f"{directory}: {error.problem}"
            raise DamagedFile(problem, field=error.field, value=error.value, remedy=error.remedy) from None


def _restore(text: str, config: dict[str, Any]) -> Tokenizer:
    return Tokenizer(Core.from_str(text), config=config)


def _mark_special(core: Core, config: Mapping[str, Any]) -> None:
    """Tells `core` of the special tokens that only the configuration calls so, as transformers does on loading."""
    known = {token.content: token for token in core.get_added_tokens_decoder().values()}
    for name, declared_id, special in files.declared_tokens(config):
        found = core.token_to_id(name)
        if found is None or declared_id not in (None, found):
            given = "" if declared_id is None else f" with the id {declared_id}"
            there = "has no such token" if found is None else f"gives it the id {found}"
            raise DamagedFile(
                f"{files.CONFIG} names the token {name}{given}; {files.TOKENIZER} {there}",
                field="special token", value=name, remedy="take both files from the same model",
            )  # fmt: skip
        token = known.get(name) or AddedToken(name, normalized=False)
        if special and not token.special:
            token.special = True
            core.add_special_tokens([token])
            known[name] = token


def _size(vocab: Mapping[str, int]) -> int:
    size = max(vocab.values(), default=-1) + 1
    if size > 4 * len(vocab) + (1 << 16):  # tables are made for every id below: don't let a file ask for gigabytes
        raise DamagedFile(
            f"{len(vocab)} tokens have ids up to {size - 1}",
            field="vocab", value=size - 1, remedy="number the tokens without such gaps",
        )  # fmt: skip
    return size


def _why_not(texts: Sequence[Any], error: Exception) -> DachengError:
    """The library's refusal of a batch, with the text that caused it."""
    for text in texts:
        if not isinstance(text, str):
            return UsageError("a text must be a string", field="text", value=text, remedy="leave out records without")
        try:
            utf8(text)
        except UsageError as surrogate:
            return surrogate
    return DachengError(
        f"the tokenizer cannot encode the text: {error}",
        field="text", value=texts[0] if len(texts) == 1 else None,
        remedy="use a tokenizer that has a token for what it does not know",
    )  # fmt: skip
