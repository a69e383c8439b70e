"""Structured output: which tokens may come next so that the text fits a JSON schema, a regular expression, a Lark
grammar or one of several choices. The grammars are llguidance's; here are the tokenizer's side and the limits."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from threading import Lock, RLock
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dacheng.errors import MissingExtra, UsageError
from dacheng.protocols import Grammar

__all__ = ["Grammar", "GrammarCompiler", "Matcher", "embedded", "embedded_schema"]

MAX_SOURCE_BYTES = 64 * 1024
_KEPT = 64  # compiled grammars: a server is asked for the same schema again and again
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,24}"  # between JSON's parts: a model could fill its whole answer with it
# Work at most, in llguidance's units: about 100 ms to begin with and 15 ms a token on a machine of 2024.
_LIMITS: dict[str, Any] = {"initial_lexer_fuel": 5_000_000, "step_lexer_fuel": 200_000, "max_grammar_size": 200_000}


class Vocabulary(Protocol):
    """What a compiler asks of dacheng.text.Tokenizer."""

    vocab_size: int
    eos_id: int
    bos_id: int | None
    special_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...
    def decode_bytes(self, ids: Any, skip_special_tokens: bool = True) -> bytes: ...


class GrammarCompiler:
    """Grammar -> Matcher for one tokenizer. Safe in several threads; compiled grammars are kept and copied.

    end_ids: further tokens that end a text, beside the tokenizer's EOS: allowed where the text may end. vocab_size: of
    the logits, where they have more columns than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: Vocabulary, end_ids: Sequence[int] = (), vocab_size: int | None = None) -> None:
        """Raises MissingExtra without llguidance. Cheap: the vocabulary is built for the first grammar, which takes
        about half a second for 50,000 tokens."""
        try:
            import llguidance
        except ImportError:
            raise MissingExtra("llguidance", "serve") from None
        self._library = llguidance
        self.vocab_size = max(vocab_size or 0, tokenizer.vocab_size)
        self._tokenizer, self._ends = tokenizer, list(dict.fromkeys([tokenizer.eos_id, *end_ids]))
        self._limits = llguidance.LLParserLimits(**_LIMITS, verbose_errors=False)
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._lock, self._compiling = Lock(), RLock()

    def matcher(self, grammar: Grammar) -> Matcher:
        """At the start of a text. Raises UsageError saying what in the grammar is wrong, not supported or too large.

        A grammar that is not kept is compiled, one at a time, without holding up those that are kept.
        """
        found = self._kept(grammar)
        if found is None:
            with self._compiling:
                found = self._kept(grammar)
                if found is None:
                    found = self._compile(grammar)
                    with self._lock:
                        self._compiled[grammar] = found
                        while len(self._compiled) > _KEPT:
                            self._compiled.popitem(last=False)
        return Matcher(found.deep_copy(), self.vocab_size)

    def _kept(self, grammar: Grammar) -> Any:
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
            return found

    @cached_property
    def _tokens(self) -> Any:
        wrapped = self._library.TokenizerWrapper(_Tokens(self._tokenizer))
        return self._library.LLTokenizer(wrapped, n_vocab=self.vocab_size, eos_token=self._ends)

    def _compile(self, grammar: Grammar) -> Any:
        size = len(grammar.source.encode("utf-8", "surrogatepass"))
        if size > MAX_SOURCE_BYTES:
            raise _refused(grammar, f"it has {size} bytes", f"at most {MAX_SOURCE_BYTES}")
        make = self._library.LLMatcher
        try:
            if grammar.kind == "json_schema":
                text = make.grammar_from_json_schema(grammar.source, overrides={"whitespace_pattern": _WHITESPACE})
            else:
                text = self._library.grammar_from(_dialect(grammar), grammar.source)
        except (ValueError, UnicodeError) as error:
            raise _refused(grammar, str(error), "correct it") from None
        matcher = make(self._tokens, text, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise _refused(grammar, _first_line(matcher.get_error()), "simplify it, or leave this part out")
        if warnings := matcher.get_grammar_warnings():  # parts that would silently not hold
            raise _refused(grammar, _first_line("; ".join(warnings)), "leave this part out")
        return matcher


class Matcher:
    """Where a text is in its grammar. One request's; not for several threads."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def fork(self) -> Matcher:
        """Another one at the same place."""
        return Matcher(self._matcher.deep_copy(), self._vocab_size)

    def mask(self) -> Tensor:
        """(V,) bool: the tokens that may come next; an end of text where the text may end here. Raises UsageError when
        the grammar turned out to be too complex in the middle of a text."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool))

    def accept(self, token: int) -> bool:
        """Goes on by a token; False, and nowhere, when it may not come next. That a grammar is too complex after all is
        said by the next `mask`: one text's trouble must not end the step of others."""
        return self._matcher.try_consume_tokens([token]) == 1

    def allowed(self, tokens: Sequence[int]) -> int:
        """How many of these may come next, one after the other. The state stays."""
        return int(self._matcher.validate_tokens(list(tokens)))

    def rollback(self, tokens: int) -> None:
        """Takes back the last accepted tokens: a rejected draft."""
        if tokens and not self._matcher.rollback(tokens):
            self._check()

    @property
    def may_end(self) -> bool:
        """Whether the text so far is whole."""
        return bool(self._matcher.is_accepting())

    @property
    def is_done(self) -> bool:
        """Whether nothing but an end of text can follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def _check(self) -> None:
        if self._matcher.is_error():
            problem = _first_line(self._matcher.get_error())
            raise UsageError(f"the grammar cannot be followed: {problem}", field="grammar", remedy="simplify it")


class _Tokens:
    """The tokenizer as llguidance's wrapper asks for it."""

    def __init__(self, tokenizer: Vocabulary) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        special = tokenizer.special_ids
        self.tokens = [
            tokenizer.decode_bytes([i], skip_special_tokens=i not in special) for i in range(tokenizer.vocab_size)
        ]
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):  # the wrapper tries: our tokenizer takes text
            raise TypeError("text, not bytes")
        return self._tokenizer.encode(text)


def embedded(grammar: Grammar) -> str:
    """`grammar` as a part of a rule in a Lark grammar. A Lark grammar has rules of its own and cannot be one."""
    if grammar.kind == "json_schema":
        schema = json.loads(grammar.source)
        return embedded_schema(schema if isinstance(schema, dict) else {} if schema else {"not": {}})
    if grammar.kind == "regex":
        escaped = re.sub(r"\\.|/|\n", lambda m: {"/": r"\/", "\n": r"\n"}.get(m[0], m[0]), grammar.source, flags=re.S)
        return f"/{escaped}/"
    if grammar.kind == "choice":
        return "(" + " | ".join(json.dumps(choice) for choice in json.loads(grammar.source)) + ")"
    raise _refused(grammar, "it has rules of its own", "use a JSON schema, a regular expression or a choice")


def embedded_schema(schema: dict[str, Any]) -> str:
    """A JSON schema as a part of a rule in a Lark grammar, with the white space that the others have."""
    options = schema.get("x-guidance")
    known = {"whitespace_pattern": _WHITESPACE} | (options if isinstance(options, dict) else {})
    return "%json " + json.dumps(schema | {"x-guidance": known})


def _dialect(grammar: Grammar) -> Any:
    """GBNF, llama.cpp's, is told from Lark by how its rules are written."""
    return "gbnf" if grammar.kind == "lark" and "::=" in grammar.source else grammar.kind


def _refused(grammar: Grammar, why: str, remedy: str) -> UsageError:
    kind = grammar.kind.replace("_", " ")
    return UsageError(
        f"this {kind} cannot be followed: {why}", field="grammar", value=grammar.source[:200], remedy=remedy
    )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason is given")[:300]
