"""The floor under every language model: n-grams of bytes or tokens, smoothed by modified Kneser–Ney.

A trained network that doesn't beat them has learnt nothing that counting would not have found. All probabilities are
exact and normalised over the whole alphabet, so bits per byte compare with a network's on the same text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dacheng.errors import UsageError
from dacheng.evaluate.ngram_counts import Floats, Ints, Level, concatenate, count_levels

SMOOTHINGS = ("kneser-ney", "witten-bell")
_CHUNK = 1 << 21  # symbols scored at once: some 100 MB
Document = TypeVar("Document", bytes, Sequence[int])


class NGram(Generic[Document]):
    """An interpolated n-gram model over symbols 0 … alphabet - 1, each document on its own behind a start symbol.

    p_k(w | c) = max(count(cw) - D, 0) / Σ count(c·) + backoff(c) · p_{k-1}(w | c less its first symbol); p_0 uniform.
    smoothing: "kneser-ney" (interpolated modified Kneser–Ney, Chen & Goodman 1999, section 3.5), or "witten-bell"
    (Witten & Bell 1991, method C; interpolated as in Chen & Goodman, section 2.5).
    The end of a document is not predicted: figures are about the text alone.
    """

    def __init__(self, order: int, alphabet: int, smoothing: str = "kneser-ney") -> None:
        """Raises UsageError for an order or alphabet below 1 and for an unknown smoothing."""
        for name, value in (("order", order), ("alphabet", alphabet)):
            if value < 1:
                raise UsageError("must be at least 1", field=name, value=value, remedy="raise it")
        if smoothing not in SMOOTHINGS:
            raise UsageError("unknown smoothing", field="smoothing", value=smoothing, remedy=" or ".join(SMOOTHINGS))
        self.order, self.alphabet, self.smoothing = order, alphabet, smoothing
        self._symbols = alphabet + 1  # and the start symbol
        self._levels: list[Level] = []

    def fit(self, documents: Iterable[Document]) -> Self:
        """Counts the documents. Raises UsageError where there is nothing to count."""
        symbols, lengths = concatenate(documents, self._symbols)
        if not lengths.sum():
            raise UsageError("there is no text to count", field="documents", value=len(lengths), remedy="give some")
        self._levels = count_levels(symbols, self.order, self._symbols, self.smoothing)
        return self

    @property
    def n_grams(self) -> int:
        """Distinct n-grams held, all orders together."""
        return sum(int(np.count_nonzero(level.counts)) for level in self._levels)

    @property
    def memory_bytes(self) -> int:
        arrays = (a for level in self._levels for a in (level.keys, level.counts, level.denominators, level.backoff))
        return sum(array.nbytes for array in arrays)

    def document_bits(self, documents: Iterable[Document]) -> tuple[Floats, Ints]:
        """Per document: bits of its symbols (-log2 p, in sum), and how many symbols it has."""
        self._require_fit()
        bits, lengths = [], []
        for batch in _batches(documents):
            symbols, sizes = concatenate(batch, self._symbols)
            bits.append(self._bits(symbols, sizes))
            lengths.append(sizes)
        if not bits:
            return np.zeros(0), np.zeros(0, dtype=np.int64)
        return np.concatenate(bits), np.concatenate(lengths)

    def bits_per_symbol(self, documents: Iterable[Document]) -> float:
        """Mean -log2 p of a symbol. Raises UsageError where the documents are empty."""
        bits, lengths = self.document_bits(documents)
        return _ratio(bits, lengths)

    def probabilities(self, context: Document, *, from_start: bool = True) -> Floats:
        """(alphabet,) probabilities of the symbol after `context`.

        from_start: the context is all that stands before, from a document's first symbol; otherwise an excerpt.
        """
        return self._distribution(self._state(context, from_start))

    def _require_fit(self) -> None:
        if not self._levels:
            raise UsageError("the n-gram model has no counts yet", field="fit", remedy="call fit with some text first")

    def _bits(self, symbols: NDArray[np.int32], sizes: Ints) -> Floats:
        """Sums over documents of -log2 p; `symbols` and `sizes` as `concatenate` gives them."""
        positions = np.flatnonzero(symbols != self.alphabet)
        wanted = symbols[positions].astype(np.int64)
        p = np.full(len(positions), 1.0 / self.alphabet)
        numbers = np.full(len(symbols), 0, dtype=np.int64)
        for k, level in enumerate(self._levels, start=1):
            contexts = numbers[positions - 1]
            place = level.find(contexts, wanted, self._symbols)
            known = contexts >= 0
            p[known] *= level.backoff[contexts[known]]
            seen = place >= 0
            p[seen] += level.discounted(place[seen]) / level.denominators[contexts[seen]]
            if k == 1:
                numbers = symbols.astype(np.int64)
            else:
                numbers = np.full(len(symbols), -1, dtype=np.int64)
                numbers[positions] = place
        owner = np.repeat(np.arange(len(sizes)), sizes)
        return np.bincount(owner, weights=-np.log2(p), minlength=len(sizes)).astype(np.float64)

    def _state(self, context: Document, from_start: bool) -> list[int]:
        """Numbers of the contexts of length 0 … order - 1 that end here; -1 where never seen."""
        self._require_fit()
        symbols, _ = concatenate([context], self._symbols)
        state = [0] + [-1] * (self.order - 1)
        for symbol in symbols[0 if from_start else 1 :][-self.order + 1 :] if self.order > 1 else []:
            state = self._advance(state, int(symbol))
        return state

    def _advance(self, state: list[int], symbol: int) -> list[int]:
        following = [0, symbol] + [-1] * (self.order - 2)
        for k in range(2, self.order):
            if state[k - 1] < 0 or symbol == self.alphabet:
                break  # what was never seen is not part of anything longer
            found = self._levels[k - 1].find(np.array([state[k - 1]]), np.array([symbol]), self._symbols)
            following[k] = int(found[0])
        return following[: self.order]

    def _distribution(self, state: list[int]) -> Floats:
        p = np.full(self.alphabet, 1.0 / self.alphabet)
        for level, context in zip(self._levels, state, strict=True):
            if context < 0:
                break
            p *= level.backoff[context]
            low, high = np.searchsorted(level.keys, [context * self._symbols, (context + 1) * self._symbols])
            if high > low and level.denominators[context] > 0:
                following = level.keys[low:high] - context * self._symbols
                p[following] += level.discounted(np.arange(low, high)) / level.denominators[context]
        return p

    def _sample(self, prompt: Document, n: int, seed: int, temperature: float) -> list[int]:
        if temperature < 0:
            raise UsageError("must be at least 0", field="temperature", value=temperature, remedy="0 is greedy")
        generator = np.random.default_rng(seed)
        state = self._state(prompt, from_start=True)
        symbols = []
        for _ in range(n):
            p = self._distribution(state)
            if temperature == 0:
                symbol = int(p.argmax())
            else:
                cumulative = np.cumsum(np.exp(np.log(p / p.max()) / temperature))
                drawn = np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right")
                symbol = min(int(drawn), self.alphabet - 1)
            symbols.append(symbol)
            state = self._advance(state, symbol)
        return symbols


class ByteNGram(NGram[bytes]):
    """n-grams of bytes: needs no tokenizer, so any text and any other model's bits per byte compare with it."""

    def __init__(self, order: int, smoothing: str = "kneser-ney") -> None:
        super().__init__(order, 256, smoothing)

    def bits_per_byte(self, documents: Iterable[bytes]) -> float:
        """Mean -log2 p of a byte. Raises UsageError where the documents are empty."""
        return self.bits_per_symbol(documents)

    def sample(self, prompt: bytes, n: int, seed: int = 0, temperature: float = 1.0) -> bytes:
        """n bytes that continue a document beginning with `prompt` (not repeated). temperature 0: the likeliest."""
        return bytes(self._sample(prompt, n, seed, temperature))


class TokenNGram(NGram[Sequence[int]]):
    """n-grams of token ids. byte_lengths (vocab_size,): bytes each token stands for (`Tokenizer.byte_lengths()`)."""

    def __init__(self, order: int, byte_lengths: Sequence[int] | Ints, smoothing: str = "kneser-ney") -> None:
        self.byte_lengths = np.asarray(byte_lengths, dtype=np.int64)
        super().__init__(order, len(self.byte_lengths), smoothing)

    def bits_per_byte(self, documents: Iterable[Sequence[int]]) -> float:
        """Bits of all tokens over the bytes they stand for. Raises UsageError where these are none."""
        texts = list(documents)
        bits, _ = self.document_bits(texts)
        return _ratio(bits, self.document_bytes(texts))

    def document_bytes(self, documents: Iterable[Sequence[int]]) -> Ints:
        """Bytes that each document's tokens stand for."""
        return np.array([self.byte_lengths[np.asarray(text, dtype=np.int64)].sum() for text in documents], np.int64)

    def sample(self, prompt: Sequence[int], n: int, seed: int = 0, temperature: float = 1.0) -> list[int]:
        """n ids that continue a document beginning with `prompt` (not repeated). temperature 0: the likeliest."""
        return self._sample(prompt, n, seed, temperature)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Whole documents in lists of about _CHUNK symbols."""
    batch: list[Document] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document) + 1
        if held >= _CHUNK:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _ratio(bits: Floats, units: Ints) -> float:
    if not units.sum():
        raise UsageError("there is no text to score", field="documents", value=len(units), remedy="give some text")
    return float(bits.sum() / units.sum())
