"""What an engine refuses before it takes a request, or a limit."""

from __future__ import annotations

from dacheng.engine.request import Request
from dacheng.errors import DachengError, UsageError
from dacheng.models.traits import DecoderTraits


def longest_context(traits: DecoderTraits, wanted: int | None) -> int:
    """Tokens of one request, prompt included. Raises UsageError for more than the model has positions."""
    longest = traits.longest_text if wanted is None else wanted
    if not 1 < longest <= traits.longest_text:
        raise UsageError(
            "the context must hold a prompt and a token, and the model has positions only so far",
            field="max_context",
            value=wanted,
            remedy=f"from 2 to {traits.longest_text}",
        )
    return longest


def check_tokens(request: Request, vocab_size: int, tokenizer: object | None) -> None:
    """Raises DachengError for ids that the model has no embedding of, UsageError for stop strings without a
    tokenizer."""
    for token in (min(request.prompt_token_ids), max(request.prompt_token_ids)):
        if not 0 <= token < vocab_size:
            raise DachengError(
                "a token id is outside the model's vocabulary",
                field="prompt_token_ids",
                value=token,
                remedy=f"use the model's own tokenizer: ids below {vocab_size}",
            )
    if request.params.stop and tokenizer is None:
        raise UsageError(
            "stop strings need a tokenizer", field="stop", value=request.params.stop, remedy="use stop_token_ids"
        )
