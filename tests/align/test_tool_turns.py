"""The calculator, and answers of several turns with it: what the tool wrote is not the model's own."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.align.tools import Calculator, NotArithmetic, ToolTurns, calculate, calculator_turns, shown
from dacheng.errors import UsageError
from dacheng.protocols import Tool


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", "7"), ("-2 ^ 2", "-4"), ("2 ** -1", "0.5"), ("0.1 + 0.2", "0.3"), ("(1 / 3) * 3", "1"),
        ("22 / 7", "3.14285714286"), ("sqrt(16) + sqrt(2)", "5.41421356237"), ("7 // 2", "3"), ("-7 % 3", "2"),
        ("2 ** 3 ** 2", "512"), ("１２×３", "36"), ("(-1) ** 100000000001", "-1"), ("1 ** 10 ** 300", "1"),
        ("1e3", "1000"), ("√16", "4"), ("abs(3 - 5)", "2"), (".5 - 1", "-0.5"), ("--3", "3"), ("[1 + 2] * 2", "6"),
        ("9" * 30, "9" * 30), ("10 ** 50", "1e+50"), ("1 / 10 ** 9", "1e-9"), ("2 ^ 0.5", "1.41421356237"),
        ("1000000 * 1000000", "1000000000000"), ("100", "100"), ("0 * 5", "0"), ("3² + 1", "10"), ("10⁻³", "0.001"),
        ("2³²", "4294967296"), ("sqrt(10 ** 400)", "1e+200"),
    ],
)  # fmt: skip
def test_values(text, value):
    assert shown(calculate(text)) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "unexpected the end"), ("1 +", "unexpected the end"), ("((1)", "unexpected the end"),
        ("1)", "unexpected )"),
        ("1..2", "unexpected"), ("2 3", "unexpected 3"), ("1 / 0", "division by zero"), ("5 % 0", "division by zero"),
        ("0 ** -1", "division by zero"), ("9 ** 9 ** 9", "too large"), ("10 ** 10000", "too large"),
        ("2 ** 0.5 ** -9999", "too large"), ("sqrt(2 * 10 ** 999)", "too large"),
        ("4₂", "unexpected '_'"), ("(-8) ** (1/3)", "no real power"), ("sqrt(-1)", "negative"),
        ("__import__('os')", "unexpected"), ("exit()", "no such function: exit"), ("f.g", "unexpected"),
        ("(" * 100 + ")" * 100, "too deeply"), ("2" + "**2" * 60, "too"), ("1" * 500, "too long"),
        ("1e9999", "unexpected"),
        ("a" * 100, "no such function"), ("1;2", "unexpected ';'"), ("\0", "unexpected"),
        ("lambda: 0", "unexpected"),
    ],
)  # fmt: skip
def test_what_is_no_arithmetic(text, words):
    with pytest.raises(NotArithmetic, match=r".*" + words.replace(")", r"\)").replace("(", r"\(")):
        calculate(text)


@settings(deadline=None)
@given(st.text(alphabet="0123456789+-*/%^().e ", max_size=30))
def test_any_text_has_a_value_or_a_reason(text):
    try:
        assert shown(calculate(text))
    except NotArithmetic as error:
        assert error.problem


@settings(deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_it_is_exact(a, b, c):
    assert calculate(f"({a}) * ({b}) / {c} - {a}") == Fraction(a * b, c) - a
    assert Fraction(shown(Fraction(a * b))) == a * b


def test_the_tool():
    tool = Calculator()
    assert isinstance(tool, Tool)
    assert tool(expression="12 * 7") == "84"
    assert tool(expression="1 / 0") == "error: division by zero"
    assert (
        tool() == tool(expression=3) == tool(expression="1", other=2) == "error: the one argument is expression, a text"
    )


def test_turns():
    turns = calculator_turns()
    assert turns.stop == ("</calc>",)
    assert turns("12 * 7 is <calc>12 * 7</calc>") == "<result>84</result>"
    assert turns("<calc>1/0</calc>") == "<result>error: division by zero</result>"
    assert turns("<calc>1</calc><result>1</result> then <calc> 2+2 </calc>\n") == "<result>4</result>"
    assert turns("stray</calc>") == ""  # it stopped at a mark that ends no call
    assert turns("<calc>1</calc><result>1</result> again</calc>") == ""
    assert turns("no call at all") is None
    assert turns("<calc>1</calc><result>1</result> so it is 1") is None
    assert turns("<calc>" + "9" * 39 + " * 1</calc>") == "<result>" + "9" * 39 + "</result>"


def test_turns_as_gsm8k_writes_them():
    turns = calculator_turns(opening="<<", closing="=", before="", after=">>")
    assert turns("She has 16 - 3 = <<16-3=") == "13>>"
    assert turns("x =") == ""


class Lookup:
    name, description = "lookup", "A value by its key."
    parameters = {"type": "object", "properties": {"key": {"type": "string"}, "default": {"type": "string"}}}  # noqa: RUF012

    def __call__(self, **arguments):
        return {"a": "1" * 1000}[arguments["key"]]


def test_calls_as_json():
    marks = {"opening": "<tool_call>", "closing": "</tool_call>", "before": "\n<r>", "after": "</r>\n"}
    turns = ToolTurns(tools=(Calculator(), Lookup()), json_calls=True, **marks)

    def said(call):
        return turns(f"<tool_call>{call}</tool_call>").removeprefix("\n<r>").removesuffix("</r>\n")

    assert said('{"name": "calculator", "arguments": {"expression": "2 * 3"}}') == "6"
    assert said('{"name": "lookup", "arguments": {"key": "a"}}') == "1" * 400
    assert said('{"name": "lookup", "arguments": {"key": "b"}}') == "error: KeyError: 'b'"
    assert said('{"name": "calc"}') == "error: no tool 'calc'; there are calculator, lookup"
    assert said('{"name": 3}').startswith("error: a call is")
    assert said('{"name": "lookup", "arguments": [1]}') == "error: arguments are an object"
    assert said("[" * 100_000).startswith("error: no JSON")


@pytest.mark.parametrize("wrong", [{"tools": ()}, {"tools": (Lookup(),)}, {"tools": (Calculator(),) * 2}])
def test_tools_that_do_not_fit(wrong):
    with pytest.raises(UsageError):
        ToolTurns(**wrong)


def test_rollouts_with_the_calculator_learn_from_their_own_tokens_alone():
    """A model that writes one call, whatever comes: the result is in the text, in no loss, and the model reads on."""
    import torch

    from dacheng.align.rollouts.ask import Ask, Sampling
    from dacheng.align.rollouts.inline import InlineWorker
    from dacheng.data.rollouts import collate
    from dacheng.models.decoder import Decoder
    from dacheng.models.traits import DecoderTraits
    from dacheng.text import train_tokenizer

    tokenizer = train_tokenizer(["ab"], vocab_size=258, min_frequency=1 << 30)  # bytes
    ids = {character: tokenizer.encode(character)[0] for character in ":<6*7=>.\n"}
    follows = dict(zip(":<6*7", "<6*7=")) | {">": ".", ".": "\n"}
    size = tokenizer.vocab_size
    traits = DecoderTraits(
        vocab_size=size, width=size, layers=1, heads=1, max_positions=96, mlp_width=8, tied_head=False
    )
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # a table of what follows what: blocks that add nothing between one-hot rows and the head
        for parameter in model.blocks.parameters():
            parameter.zero_()
        model.embed.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for before, after in follows.items():
            model.lm_head.weight[ids[after], ids[before]] = 10.0
        model.lm_head.weight[tokenizer.eos_id, ids["\n"]] = 10.0
    turns = calculator_turns(opening="<", closing="=", before="", after=">")
    worker = InlineWorker(model, tokenizer, Sampling(max_tokens=40, stop=turns.stop), continuation=turns)
    [rollout] = worker.generate([Ask("1", tuple(tokenizer.encode(":")), "g", 0)])
    assert rollout.text == "<6*7=42>.\n" and rollout.finish_reason == "stop"
    own = [token for token, mask in zip(rollout.completion_ids, rollout.mask) if mask]
    tool = [token for token, mask in zip(rollout.completion_ids, rollout.mask) if not mask]
    assert tokenizer.decode(tool) == "42>"
    assert tokenizer.decode(own[:-1]) == "<6*7=.\n" and own[-1] == tokenizer.eos_id
    assert all(logp == 0.0 for logp, mask in zip(rollout.logps, rollout.mask) if not mask)
    batch = collate([rollout], 0)
    assert int(batch.mask.sum()) == len(own)
    assert set(batch.targets[0][batch.targets[0] >= 0].tolist()) == set(own)
