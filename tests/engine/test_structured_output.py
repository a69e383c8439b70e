"""Grammars in the engine: what a model that knows nothing writes fits all the same, beside free texts, in any batch."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest
import torch

from dacheng.engine import Engine, speculation
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.protocols import Grammar, SamplingParams
from dacheng.text import train_tokenizer

TEXTS = [json.dumps({"name": "x", "items": [1, 2.5, True, None], "when": "2024-02-29"})] * 30
TOKENIZER = train_tokenizer(TEXTS, vocab_size=330)
MODEL = Decoder(
    DecoderTraits(
        vocab_size=TOKENIZER.vocab_size, width=32, layers=2, heads=2, max_positions=512, initializer_range=0.2
    )
).init_weights(torch.Generator().manual_seed(0))
STRING = {"type": "string", "maxLength": 5}
SCHEMAS = [
    {"type": "boolean"},
    {"type": "null"},
    {"type": "integer", "minimum": -5, "maximum": 40},
    STRING,
    {"enum": ["red", 3, None]},
    {"const": {"k": [1]}},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "string", "format": "date"},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    {"type": "array", "prefixItems": [STRING, {"type": "null"}], "items": False, "minItems": 2},
    {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    {"type": ["null", "boolean"]},
    *(
        {
            "type": "object", "properties": {"a": a, "b": b}, "required": ["a", "b"], "additionalProperties": False,
        }
        for a in (STRING, {"type": "boolean"})
        for b in ({"enum": ["x", "y"]}, {"type": "array", "items": {"type": "null"}, "maxItems": 2})
    ),
    {"$defs": {"t": {"type": "object", "properties": {"v": {"type": "boolean"}}, "required": ["v"],
                     "additionalProperties": False}}, "$ref": "#/$defs/t"},
    {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
     "additionalProperties": False},
    {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 4},
    {"type": "string", "maxLength": 0},
]  # fmt: skip


def params(grammar: Grammar, **changes) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 200, "temperature": 1.0, "seed": 5, "grammar": grammar, **changes})


def test_twenty_schemas_in_one_batch_beside_free_texts():
    assert len(SCHEMAS) == 20
    wanted = [params(Grammar.json_schema(schema), seed=i) for i, schema in enumerate(SCHEMAS)]
    free = SamplingParams(max_tokens=20, seed=1)
    engine = Engine(MODEL, TOKENIZER)
    *found, text = engine.generate(["{"] * 21, [*wanted, free])
    for completion, schema in zip(found, SCHEMAS):
        assert completion.finish_reason in ("stop", "length")
        if completion.finish_reason == "stop":
            jsonschema.validate(json.loads(completion.text), schema)
    assert sum(completion.finish_reason == "stop" for completion in found) >= 18  # numbers may go on for ever
    assert text.token_ids == Engine(MODEL, TOKENIZER).generate(["{"], [free])[0].token_ids  # not disturbed


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_same_alone_and_with_guessed_tokens(temperature):
    grammar = Grammar("regex", "(ab|cd){3,9}x")
    one = params(grammar, temperature=temperature)
    alone = Engine(MODEL, TOKENIZER).generate(["ab ab"], [one])[0]
    together = Engine(MODEL, TOKENIZER, speculate=4).generate(["ab ab", "x"], [one, params(Grammar.choice(["yes"]))])
    assert together[0].token_ids == alone.token_ids
    assert alone.finish_reason == "stop" and alone.text.endswith("x")
    assert together[1].text == "yes"


def test_a_draft_model_is_held_to_the_grammar(monkeypatch):
    """Greedy and seeded texts are those without it; drawn ones follow the grammar too. It ends where the grammar does,
    so nothing is guessed behind the end."""
    monkeypatch.setattr(speculation, "PLAIN_STEPS", 0)
    monkeypatch.setattr(speculation, "TRIAL", 10**9)
    for temperature, seed in ((0.0, None), (0.9, 3), (0.9, None)):
        wanted = [params(Grammar.json_schema(schema), temperature=temperature, seed=seed) for schema in SCHEMAS]
        engine = Engine(MODEL, TOKENIZER, speculate=5, draft=MODEL)
        found = engine.generate(["{"] * len(wanted), wanted)
        assert engine.metrics["tokens_accepted"] > 0.9 * engine.metrics["tokens_drafted"] > 0
        for completion, schema in zip(found, SCHEMAS):
            if completion.finish_reason == "stop":
                jsonschema.validate(json.loads(completion.text), schema)
        if temperature == 0 or seed is not None:
            alone = Engine(MODEL, TOKENIZER).generate(["{"] * len(wanted), wanted)
            assert [one.token_ids for one in found] == [one.token_ids for one in alone]


def test_choices_end_where_nothing_can_follow():
    found = Engine(MODEL, TOKENIZER).generate(["a"] * 8, [params(Grammar.choice(["no", "yes", "maybe"]), seed=i)
                                                          for i in range(8)])  # fmt: skip
    assert {completion.text for completion in found} <= {"no", "yes", "maybe"}
    assert all(completion.finish_reason == "stop" for completion in found)


def test_refusals_leave_the_engine_as_it_was():
    engine = Engine(MODEL, TOKENIZER)
    for bad in (
        params(Grammar.json_schema({"type": "objekt"})),
        replace(params(Grammar.json_object()), ignore_eos=True),
        replace(params(Grammar.json_object()), min_tokens=3),
    ):
        with pytest.raises(UsageError):
            engine.generate(["a"], [bad])
    with pytest.raises(UsageError, match="tokenizer"):
        Engine(MODEL).generate([[1, 2]], [params(Grammar.json_object())])
    assert not engine.has_work and engine.generate(["a"], [params(Grammar.choice(["ok"]))])[0].text == "ok"
