import ast
import inspect
import json
import sys
import textwrap
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.errors import UsageError
from dacheng.evaluate import code
from dacheng.evaluate.code import kept_share, make_prompts, parse_share, why_not

PROMPT = 'def f(x):\n    """Doubles."""\n'


def test_the_three_measures_on_known_completions():
    completions = [
        "    y = x * 2\n    return y\n",  # whole
        "    y = x * 2\n    return y +",  # cut off: 1 of 2 lines kept
        "    y = x * 2\n    return y\n\ndef g(:\n    a\n    b\n",  # 2 of 5 kept
        "  y = ((\n",  # nothing kept
        "",  # parses with the prompt, and is no completion
        "    # only a comment\n\n",
    ]
    result = parse_share([PROMPT] * 6, completions)
    assert result["n"] == 6
    assert result["parse"] == pytest.approx(1 / 6)
    assert result["parse_trimmed"] == pytest.approx(3 / 6)
    assert result["kept_lines"] == pytest.approx((1 + 0.5 + 0.4) / 6)
    assert result["reasons"] == {"SyntaxError": 2, "no code line": 2, "IndentationError": 1}
    assert result["prompts_unparsed"] == 0
    assert result["parse_low"] < result["parse"] < result["parse_high"]
    assert result["kept_lines_low"] <= result["kept_lines"] <= result["kept_lines_high"]


def test_trimming_finds_the_longest_run_and_never_cuts_the_prompt():
    assert kept_share(PROMPT, "    if x:\n        y = 1\n    else:\n") == pytest.approx(2 / 3)
    assert kept_share(PROMPT, '    s = """open\n    more\n') == 0.0
    assert kept_share("def f(:\n", "    pass\n") == 0.0
    assert kept_share(PROMPT, "    a = (1,\n\n         2)\n    b = [") == pytest.approx(2 / 3)
    assert kept_share("def f(x):\n", "    return (x\n") == 0.0
    # a later line can mend an earlier one, so the search goes on past what does not parse
    assert kept_share("", "a = [\n1,\n2]\n") == 1.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\0", "null byte"),
        ("(" * 5000 + ")" * 5000, "nested too deeply"),
        ("-" * 20000 + "1", "nested too deeply"),
        ("a" + ".b" * 20000, "nested too deeply"),
        ("x = " + "[" * 150 + "]" * 150, None),
        ("x = 1\ud800", "not encodable"),
        ("x = '\\d'", None),
        ("x is 1", None),
        ("a" * 200_000, "too long"),
        ("x = " + "1" * 5000, "SyntaxError"),
        ("if x:\npass", "IndentationError"),
        ("if x:\n\ty\n        z", "TabError"),
        ("print 'hello'", "SyntaxError"),
        ("return 1", None),  # the grammar allows it; only the compiler minds
        ("", None),
    ],
)
def test_no_text_can_do_more_than_be_refused(text, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert why_not(text) == reason


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("def x():\n\t =[]{}'\"\\#\0\ud800é中1.,@"), max_size=60))
def test_any_text_is_judged_as_ast_does(text):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
        accepted = True
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        accepted = False
    assert (why_not(text) is None) == accepted
    assert 0.0 <= kept_share(PROMPT, text) <= 1.0


def test_long_completions_are_refused_for_trimming_not_searched():
    assert kept_share("", "x = 1\n" * (code.MAX_LINES + 1)) == 0.0
    result = parse_share([""], ["x = 1\n" * (code.MAX_LINES + 1)])
    assert (result["parse"], result["parse_trimmed"]) == (1.0, 1.0)
    assert "kept_lines_low" not in result


SOURCE = textwrap.dedent(
    '''
    import os

    @decorated
    def documented(a,
                   b=1):
        """Does it.

        At length.
        """
        return a + b

    async def first_statement(a):
        total = sum(
            a)
        return total

    def compound_first(a):
        if a:
            return 1
        return 2

    def one_line(a): return a

    def nothing_more(a):
        """Only this."""

    def two_on_a_line(a):
        x = 1; return x

    class C:
        def method(self):
            """Doc."""
            return 1
    '''
)


def test_prompts_are_headers_with_docstring_or_first_statement():
    prompts = make_prompts([SOURCE, "def broken(:"], 2, seed=0)
    assert sorted(prompts) == [
        "async def first_statement(a):\n    total = sum(\n        a)\n",
        'def documented(a,\n               b=1):\n    """Does it.\n\n    At length.\n    """\n',
    ]
    with pytest.raises(UsageError, match="2 different"):
        make_prompts([SOURCE, SOURCE], 3, seed=0)


def test_prompts_of_real_code_parse_and_their_originals_complete_them():
    texts = [inspect.getsource(module) for module in (ast, inspect, json.decoder, textwrap)]
    prompts = make_prompts(texts, 20, seed=1)
    assert prompts == make_prompts(iter(texts), 20, seed=1)
    assert prompts != make_prompts(texts, 20, seed=2)
    assert len(set(prompts)) == 20
    completions = []
    for prompt in prompts:
        assert why_not(prompt) is None
        (text,) = [text for text in texts if prompt in text]
        completions.append(text[text.index(prompt) + len(prompt) :][:400])
    result = parse_share(prompts, completions)
    assert result["prompts_unparsed"] == 0
    assert result["parse"] < 0.5  # cut off after 400 characters
    assert result["parse_trimmed"] > 0.9
    assert result["kept_lines"] > 0.6


def test_line_ends_of_other_systems_and_form_feeds():
    text = 'x = 1\n\x0c\ndef f(a):\r\n    """Doc."""\r\n    return a\r\n'
    assert make_prompts([text], 1, seed=0) == ['def f(a):\n    """Doc."""\n']


def test_wrong_use_is_refused():
    for prompts, completions in (([], []), (["a"], []), (["a"], ["b", "c"])):
        with pytest.raises(UsageError):
            parse_share(prompts, completions)


def test_recursion_limit_is_untouched():
    before = sys.getrecursionlimit()
    why_not("a" + ".b" * 20000)
    assert sys.getrecursionlimit() == before
