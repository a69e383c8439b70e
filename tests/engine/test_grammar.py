"""Grammars without a model: 300 JSON schemas; valid instances pass token by token, and invalid ones don't."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest

from dacheng.engine.grammar import MAX_SOURCE_BYTES, Grammar, GrammarCompiler
from dacheng.errors import UsageError
from dacheng.text import Tokenizer, train_tokenizer

SCHEMAS = 300
WORDS = ["alpha", "beta", "大成", "naïve", "x-1", "a b", "", "🙂", 'quo"te', "back\\slash", "line\nbreak"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [json.dumps({"name": w, "items": [1, 2.5, True, None], "中文": "值"}, ensure_ascii=False) for w in WORDS]
    return train_tokenizer(texts * 30, vocab_size=420)


@pytest.fixture(scope="module")
def compiler(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer)


def fits(matcher, tokenizer, text: str) -> bool:
    """Whether the whole text may be written, each token by the mask of the moment, and the end may follow it."""
    for token in tokenizer.encode(text):
        allowed = bool(matcher.mask()[token])
        assert allowed == (matcher.allowed([token]) == 1)
        if not allowed:
            return False
        assert matcher.accept(token)
    assert matcher.may_end == bool(matcher.mask()[tokenizer.eos_id])
    return matcher.may_end


# --- schemas and their instances --------------------------------------------------------------------------------------
def leaf(r: random.Random) -> tuple[dict, list]:
    """A schema and values that fit it."""
    low = r.randint(-50, 50)
    kinds = [
        ({"type": "string"}, r.sample(WORDS, 3)),
        ({"type": "integer"}, [0, -7, r.randint(0, 10**6)]),
        ({"type": "number"}, [0, 1.5, -2.25]),
        ({"type": "boolean"}, [True, False]),
        ({"type": "null"}, [None]),
        ({"enum": ["red", "green", 3, None]}, ["red", 3, None]),
        ({"const": {"k": [1]}}, [{"k": [1]}]),
        ({"type": "integer", "minimum": low, "maximum": low + 9}, [low, low + 9, low + 4]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, [1, 0.5]),
        ({"type": "string", "minLength": 2, "maxLength": 4}, ["ab", "大成大成", "abc"]),
        ({"type": "string", "pattern": "^[a-c]{2}[0-9]+$"}, ["ab1", "cc123"]),
        ({"type": "string", "format": "date"}, ["2024-02-29", "1999-12-31"]),
        ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"]),
        ({"type": ["string", "null"]}, ["x", None]),
        ({"type": "integer", "multipleOf": 5}, [0, 35]),
    ]
    return r.choice(kinds)


def schema(r: random.Random, depth: int, top: bool = False) -> tuple[dict, list]:
    if depth == 0:
        return leaf(r)
    kind = r.choice(["object", "array", "anyOf", "tuple", "open", *(["ref"] if top else [])])  # $defs are the root's
    inner, values = schema(r, depth - 1)
    if kind == "array":
        fewest = r.randint(0, 2)
        return {"type": "array", "items": inner, "minItems": fewest, "maxItems": fewest + 2}, [
            [r.choice(values) for _ in range(fewest + extra)] for extra in (0, 1, 2)
        ]
    if kind == "anyOf":
        other, others = schema(r, depth - 1)
        return {"anyOf": [inner, other]}, values[:2] + others[:2]
    if kind == "tuple":
        other, others = leaf(r)
        return {"type": "array", "prefixItems": [inner, other], "items": False, "minItems": 2}, [[values[0], others[0]]]
    if kind == "open":
        return {"type": "object", "additionalProperties": inner}, [
            {},
            {"a": values[0]},
            {"b": values[-1], "中": values[0]},
        ]
    names = r.sample(["id", "name", "中文", "nested", "a b"], 3)
    parts = [(inner, values), schema(r, depth - 1), leaf(r)]
    required = [name for name in names if r.random() < 0.6]
    found: dict = {
        "type": "object", "properties": dict(zip(names, [p[0] for p in parts])), "required": required,
        "additionalProperties": False,
    }  # fmt: skip
    whole = {name: p[1][0] for name, p in zip(names, parts)}
    least = {name: value for name, value in whole.items() if name in required}
    if kind == "ref":
        found["properties"][names[0]] = {"$ref": "#/$defs/inner"}
        return {"$defs": {"inner": inner}, **found}, [whole, least]
    return found, [whole, least]


def spoiled(value, r: random.Random) -> list:
    """Values near `value` that may not fit its schema."""
    found: list = [[value], {"other": value}, None, True, "zzz", -9999, 12.75]
    if isinstance(value, dict) and value:
        name = r.choice(list(value))
        found += [{k: v for k, v in value.items() if k != name}, value | {name: {"deep": 1}}, value | {"extra": 1}]
    if isinstance(value, list):
        found += [value + value + value, value[1:], [*value, {"x": 1}]]
    if isinstance(value, str):
        found += [value * 3 + "!", value[:1]]
    return found


@pytest.mark.parametrize("part", range(10))
def test_valid_instances_pass_and_invalid_ones_do_not(compiler, tokenizer, part):
    valid = invalid = 0
    for number in range(part * SCHEMAS // 10, (part + 1) * SCHEMAS // 10):
        r = random.Random(number)
        found, values = schema(r, number % 4, top=True)
        grammar = Grammar.json_schema(found)
        checker = jsonschema.Draft202012Validator(found, format_checker=jsonschema.FormatChecker())
        for value in values:
            assert checker.is_valid(value), (found, value)
            for text in (json.dumps(value, ensure_ascii=False), json.dumps(value, ensure_ascii=False, indent=1)):
                assert fits(compiler.matcher(grammar), tokenizer, text), (found, text)
                valid += 1
        for value in spoiled(values[0], r):
            if not checker.is_valid(value):
                text = json.dumps(value, ensure_ascii=False)
                assert not fits(compiler.matcher(grammar), tokenizer, text), (found, text)
                invalid += 1
    assert valid >= 60 and invalid >= 60


def test_half_a_json_may_not_end(compiler, tokenizer):
    matcher = compiler.matcher(Grammar.json_object())
    assert not fits(matcher, tokenizer, '{"a": [1, 2')
    assert not matcher.may_end and not matcher.is_done


def test_rollback_takes_back_tokens(compiler, tokenizer):
    matcher = compiler.matcher(Grammar.choice(["yes", "yesterday", "no"]))
    ids = tokenizer.encode("yesterday")
    masks = []
    for token in ids:
        masks.append(matcher.mask())
        assert matcher.accept(token)
    matcher.rollback(len(ids) - 1)
    assert bool((matcher.mask() == masks[1]).all())
    assert matcher.allowed(tokenizer.encode("no")) == 0
    assert matcher.allowed(ids[1:]) == len(ids) - 1


def test_a_refused_token_changes_nothing(compiler, tokenizer):
    matcher = compiler.matcher(Grammar("regex", "[0-9]{3}"))
    before = matcher.mask()
    assert not matcher.accept(tokenizer.encode("x")[0])
    assert bool((matcher.mask() == before).all())
    assert fits(matcher, tokenizer, "123")


def test_lark_grammars(compiler, tokenizer):
    grammar = Grammar("lark", 'start: sum\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]+/')
    assert fits(compiler.matcher(grammar), tokenizer, "1+22+333")
    assert not fits(compiler.matcher(grammar), tokenizer, "1+")


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        (Grammar.json_schema({"type": "objekt"}), "objekt"),
        (Grammar.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (Grammar.json_schema({"not": {"type": "string"}}), "not"),
        (Grammar.json_schema({"$ref": "https://example.org/schema"}), "example.org"),
        (Grammar.json_schema({"type": "string", "format": "banana"}), "banana"),
        (Grammar.json_schema("{"), ""),
        (Grammar.json_schema({"type": "integer", "minimum": 5, "maximum": 3}), ""),
        (Grammar.json_schema({"enum": ["x" * MAX_SOURCE_BYTES]}), "bytes"),
        (Grammar("regex", "(a"), "regex"),
        (Grammar("regex", "(?=a)b"), ""),
        (Grammar("lark", "start: missing"), "missing"),
        (Grammar("lark", "no grammar at all"), ""),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(compiler, grammar, why):
    with pytest.raises(UsageError) as caught:
        compiler.matcher(grammar)
    assert caught.value.field == "grammar" and why in caught.value.problem and caught.value.remedy


@pytest.mark.parametrize("choices", [[], "yes", [""], [1]])
def test_choices_are_texts(choices):
    with pytest.raises(UsageError):
        Grammar.choice(choices)
