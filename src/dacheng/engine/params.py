"""Refusing sampling parameters that mean nothing."""

from __future__ import annotations

import math

from dacheng.errors import UsageError
from dacheng.protocols import Grammar, SamplingParams

SEEDS = (-(2**63), 2**64 - 1)  # what a torch.Generator takes


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Raises UsageError naming the first parameter that is out of its range (see SamplingParams), and the range."""
    p = params
    _demand(p.max_tokens >= 1, "max_tokens", p.max_tokens, "at least 1")
    _demand(math.isfinite(p.temperature) and p.temperature >= 0, "temperature", p.temperature, "0 (greedy) or more")
    _demand(p.top_k >= 0, "top_k", p.top_k, "0 (off) or more")
    _demand(0 <= p.top_p <= 1, "top_p", p.top_p, "from 0 to 1 (off)")
    _demand(0 <= p.min_p <= 1, "min_p", p.min_p, "from 0 (off) to 1")
    _demand(
        math.isfinite(p.repetition_penalty) and p.repetition_penalty > 0,
        "repetition_penalty",
        p.repetition_penalty,
        "above 0; 1 is off",
    )
    _demand(p.seed is None or SEEDS[0] <= p.seed <= SEEDS[1], "seed", p.seed, "64 bits, or None")
    _demand(not isinstance(p.stop, str), "stop", p.stop, "a tuple of strings: (text,)")
    _demand(all(isinstance(s, str) and s for s in p.stop), "stop", p.stop, "strings that are not empty")
    _demand(all(0 <= i < vocab_size for i in p.stop_token_ids), "stop_token_ids", p.stop_token_ids, f"< {vocab_size}")
    for name in ("presence_penalty", "frequency_penalty"):
        _demand(math.isfinite(getattr(p, name)), name, getattr(p, name), "a finite number; 0 is off")
    biased = all(0 <= i < vocab_size and math.isfinite(bias) for i, bias in p.logit_bias)
    _demand(biased, "logit_bias", p.logit_bias, f"pairs of an id < {vocab_size} and a finite number")
    _demand(0 <= p.min_tokens <= p.max_tokens, "min_tokens", p.min_tokens, f"from 0 to max_tokens = {p.max_tokens}")
    _demand(0 <= p.top_logprobs <= vocab_size, "top_logprobs", p.top_logprobs, f"from 0 to {vocab_size}")
    _demand(p.logprobs or not p.top_logprobs, "top_logprobs", p.top_logprobs, "logprobs=True with it")
    if p.processed_logprobs:  # of a distribution that is tempered and nothing else
        plain = p.top_p == 1 and p.min_p == p.top_k == 0 and not (p.logit_bias or p.grammar or p.min_tokens)
        plain = plain and p.repetition_penalty == 1 and p.presence_penalty == p.frequency_penalty == 0
        _demand(p.logprobs and p.temperature > 0 and plain and not p.top_logprobs, "processed_logprobs", True,
                "it with logprobs and a temperature above 0, and nothing else that changes logits")  # fmt: skip
    _demand(
        p.prompt_logprobs is None or 0 <= p.prompt_logprobs <= vocab_size,
        "prompt_logprobs",
        p.prompt_logprobs,
        f"None (off), or from 0 to {vocab_size}",
    )
    _demand(p.grammar is None or isinstance(p.grammar, Grammar), "grammar", p.grammar, "a Grammar, or None")
    if p.grammar is not None:  # the end must be allowed where the grammar has it
        _demand(not p.ignore_eos, "ignore_eos", p.ignore_eos, "False with a grammar")
        _demand(not p.min_tokens, "min_tokens", p.min_tokens, "0 with a grammar: let the grammar ask for more")


def _demand(holds: bool, field: str, value: object, range_: str) -> None:
    if not holds:
        raise UsageError("a sampling parameter is out of range", field=field, value=value, remedy=f"use {range_}")
