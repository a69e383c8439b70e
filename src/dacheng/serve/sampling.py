"""The sampling parameters that the APIs share, read from a request."""

from __future__ import annotations

from typing import Any

from dacheng.engine.params import SEEDS
from dacheng.serve.api_error import bad_request
from dacheng.serve.fields import Fields
from dacheng.serve.limits import Limits

ALREADY: dict[str, tuple[Any, ...]] = {
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "use_beam_search": (False,),
    "length_penalty": (1.0, 1),
    "priority": (0,),
}


def read_sampling(body: Fields, limits: Limits, vocab_size: int) -> dict[str, Any]:
    """What SamplingParams takes, None where the request says nothing: OpenAI's fields, and as extensions those that
    vLLM adds to them. Raises APIError naming the field."""
    return {
        "temperature": body.number("temperature", low=0, high=2),
        "top_p": body.number("top_p", low=0, high=1),
        "presence_penalty": _unless(0.0, body.number("presence_penalty", low=-2, high=2)),
        "frequency_penalty": _unless(0.0, body.number("frequency_penalty", low=-2, high=2)),
        "logit_bias": read_logit_bias(body, limits, vocab_size),
        "seed": body.integer("seed", low=SEEDS[0], high=SEEDS[1]),
        "stop": read_stops(body, "stop", limits),
        **read_extensions(body, vocab_size),
    }


def read_extensions(body: Fields, vocab_size: int) -> dict[str, Any]:
    """vLLM's. top_k: -1, too, is off. Others of vLLM's are taken where they say what is done here anyway."""
    for key, values in ALREADY.items():
        body.only(key, *values)
    top_k = body.integer("top_k", low=-1)
    stop_ids = body.items("stop_token_ids", most=64)
    for i, value in enumerate(stop_ids or []):
        if type(value) is not int or not 0 <= value < vocab_size:
            raise bad_request(f"stop_token_ids[{i}]", f"expected a token id from 0 to {vocab_size - 1}")
    return {
        "top_k": None if top_k is None else max(top_k, 0),
        "min_p": body.number("min_p", low=0, high=1),
        "repetition_penalty": body.number("repetition_penalty", low=0.01, high=10),
        "min_tokens": _unless(0, body.integer("min_tokens", low=0, high=1 << 20)),
        "ignore_eos": body.flag("ignore_eos") or None,
        "stop_token_ids": tuple(stop_ids) if stop_ids else None,
    }


def _unless(neutral: Any, value: Any) -> Any:
    return None if value == neutral else value


def read_stops(body: Fields, key: str, limits: Limits) -> tuple[str, ...] | None:
    found = body.raw(key)
    if found is None:
        return None
    stops = [found] if isinstance(found, str) else found
    where = body.path(key)
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise bad_request(where, "expected strings that are not empty")
    if len(stops) > limits.stops:
        raise bad_request(where, f"more than {limits.stops} entries")
    if any(len(stop) > limits.stop_chars for stop in stops):
        raise bad_request(where, f"an entry is longer than {limits.stop_chars} characters")
    return tuple(stops) or None


def read_logit_bias(body: Fields, limits: Limits, vocab_size: int) -> tuple[tuple[int, float], ...] | None:
    found = body.raw("logit_bias")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise bad_request("logit_bias", "expected an object of token ids and numbers")
    if len(found) > limits.logit_bias:
        raise bad_request("logit_bias", f"more than {limits.logit_bias} entries")
    pairs = []
    for key, value in found.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size):
            raise bad_request("logit_bias", f"{key[:40]!r} is no token id; they are 0 to {vocab_size - 1}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
            raise bad_request(f"logit_bias.{key}", "expected a number from -100 to 100")
        pairs.append((int(key), float(value)))
    return tuple(pairs) or None
