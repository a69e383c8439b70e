"""SentencePiece models, unigram and BPE, as cores of the tokenizers library, with the ids that SentencePiece gives.

Kudo and Richardson 2018 (arXiv:1808.06226); google/sentencepiece, src/unigram_model.cc, bpe_model.cc, normalizer.cc.

What is not the same: the library applies a character map to grapheme clusters, SentencePiece to the longest match, so
rare sequences of marks differ where a model has such a map; and a BPE model's UNUSED pieces are not split again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DamagedFile
from dacheng.text.vocabularies.charsmap import check_charsmap
from dacheng.text.vocabularies.merges import merges_of
from dacheng.text.vocabularies.sentencepiece_model import BPE, Kind, SentencePieceModel, parse_model
from dacheng.text.vocabularies.vocabulary import Vocabulary, add_tokens, build, read_bytes, roles

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Core
    from tokenizers.models import Model
    from tokenizers.normalizers import Normalizer

    from dacheng.text.tokenizer import Tokenizer

SPACE = "▁"  # U+2581, a space inside a piece
_NEVER = 1e6  # below the lowest score of a piece: never worth it
_SMALLEST_FLOAT = 1.17549435e-38


def sentencepiece_core(model: SentencePieceModel) -> Core:
    """model: checked. Raises DamagedFile when its character map is damaged."""
    from tokenizers import Tokenizer as Core

    is_bpe = model.model_type == BPE
    core = Core(build(lambda: _bpe(model) if is_bpe else _unigram(model), "pieces"))
    # Unigram weighs user-defined pieces as others, only far above them; BPE never looks inside them.
    plain = model.of_kind(Kind.USER_DEFINED) if is_bpe else []
    core.normalizer = build(lambda: _normalizer(model, plain), "normalizer_spec")
    if not is_bpe and (steps := _cuts(model)):
        from tokenizers import pre_tokenizers

        core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    core.decoder = _decoder(model)
    add_tokens(core, model.of_kind(Kind.CONTROL, Kind.UNKNOWN), plain, normalized=True)
    return core


def _bpe(model: SentencePieceModel) -> Model:
    """Scores become an order of merges. Of equal scores the leftmost pair comes first: as no order of pairs says that,
    longer left parts come first among them, which is the same for the pieces that have equal scores in practice, rows
    of spaces (Llama, Mistral) and of other single characters."""
    from tokenizers import models

    vocab = {piece: i for i, piece in enumerate(model.pieces)}
    joined = [
        i for i, kind in enumerate(model.kinds) if kind in (Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED)
    ]  # what SentencePiece finds by its text
    joined.sort(key=lambda i: -model.scores[i])
    places: dict[float, int] = {}
    for i in joined:
        places.setdefault(model.scores[i], len(places))
    priority = {model.pieces[i]: places[model.scores[i]] for i in joined}
    merges = merges_of((model.pieces[i] for i in joined), priority, priority)
    if len(places) < len(joined):
        merges.sort(key=lambda pair: (priority[pair[0] + pair[1]], -len(pair[0])))
    return models.BPE(
        vocab=vocab, merges=merges, unk_token=model.of_kind(Kind.UNKNOWN)[0], fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )  # fmt: skip


def _unigram(model: SentencePieceModel) -> Model:
    from tokenizers import models

    normal = [score for score, kind in zip(model.scores, model.kinds) if kind == Kind.NORMAL]
    lowest, highest = min(normal, default=0.0), max([_SMALLEST_FLOAT, *normal])

    def score(i: int) -> float:
        kind = model.kinds[i]
        if kind == Kind.NORMAL:
            return model.scores[i]
        if kind == Kind.USER_DEFINED:  # unigram_model.cc, EncodeOptimized
            return len(model.pieces[i].encode()) * highest - 0.1
        return lowest - _NEVER  # SentencePiece doesn't look for their text; the library does

    # Nine digits are all of a float32, and come back from JSON to the last bit.
    vocab = [(piece, float(f"{score(i):.9g}")) for i, piece in enumerate(model.pieces)]
    return models.Unigram(vocab, unk_id=model.kinds.index(Kind.UNKNOWN), byte_fallback=model.byte_fallback)


def _cuts(model: SentencePieceModel) -> list[Any]:
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    known = set(model.of_kind(Kind.NORMAL, Kind.USER_DEFINED))
    for names in (model.of_kind(Kind.UNKNOWN), model.of_kind(Kind.BYTE)):
        if not known.issuperset("".join(names)):
            # Their text would be such a piece, since spelling it takes unknown characters, which cost even more.
            spelled = (
                r"<(?=0x[0-9A-F]{2}>)" if len(names) > 1 else rf"{re.escape(names[0][0])}(?={re.escape(names[0][1:])})"
            )
            steps.append(pre_tokenizers.Split(Regex(spelled), "isolated"))
    if not any(SPACE in piece[1:] for piece in model.pieces):
        # No piece goes on behind a space, so the best way through a text is the best way through each word.
        steps.append(pre_tokenizers.Split(SPACE, "merged_with_next"))
    return steps


def _normalizer(model: SentencePieceModel, whole: list[str]) -> Normalizer:
    """whole: pieces that are looked for in what this makes of the text, and that this is applied to for that."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if model.precompiled_charsmap:
        check_charsmap(model.precompiled_charsmap)
        steps.append(normalizers.Precompiled(model.precompiled_charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"\A | \z"), "")]
    if model.add_dummy_prefix:
        steps.append(_prefix(whole))
    steps.append(normalizers.Replace(" ", SPACE))
    return steps[0] if len(steps) == 1 else normalizers.Sequence(steps)


def _prefix(whole: list[str]) -> Normalizer:
    """A space before the text, but not before the name of a piece by itself, which would then be found only there."""
    from tokenizers import Regex, normalizers

    if not whole:
        return normalizers.Prepend(SPACE)
    names = "|".join(re.escape(piece).replace(SPACE, f"[ {SPACE}]") for piece in whole)
    return normalizers.Replace(Regex(rf"\A(?!(?:{names})\z)(?=[\s\S])"), SPACE)


def _decoder(model: SentencePieceModel) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(SPACE, " ")]
    if model.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def read_sentencepiece(path: Path) -> Vocabulary:
    """See `tokenizer_from_sentencepiece`."""
    try:
        model = parse_model(read_bytes(path))
        core = sentencepiece_core(model)
    except DamagedFile as error:
        problem = f"{path}: {error.problem}"
        raise DamagedFile(problem, field=error.field, value=error.value, remedy=error.remedy) from None
    control = set(model.of_kind(Kind.CONTROL))
    named = {"bos_token": model.bos_piece, "eos_token": model.eos_piece, "pad_token": model.pad_piece}
    config = roles(**{role: piece for role, piece in named.items() if piece in control})
    config["unk_token"] = model.of_kind(Kind.UNKNOWN)[0]
    # Llama's and Gemma's way; T5 and XLNet begin with nothing.
    config["add_bos_token"] = "bos_token" in config and model.model_type == BPE
    return Vocabulary(core, config)


def tokenizer_from_sentencepiece(path: Path | str, **tokens: str | None) -> Tokenizer:
    """A tokenizer of a SentencePiece model (tokenizer.model, spiece.model), without the sentencepiece library.

    tokens: eos_token, bos_token, pad_token, unk_token other than the model's </s>, <s>, <pad> and <unk>.
    With add_special_tokens, texts get the BOS of BPE models, and nothing in unigram ones: the file doesn't say.
    Raises DamagedFile naming the field; DachengError when the file cannot be opened, or is of a kind that
    tokenizer.json cannot express (word and char models, spaces as suffixes, a denormalizer).
    """
    return read_sentencepiece(Path(path)).tokenizer(**tokens)
