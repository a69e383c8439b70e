"""Hostile templates: they end soon, take little, reach nothing, and the error says what was refused."""

from __future__ import annotations

import json
import time

import pytest
from chat_conversations import BY_HAND
from hypothesis import given, settings
from hypothesis import strategies as st
from text_corpora import any_text

from dacheng.errors import DachengError
from dacheng.text.chat import environment, limits
from dacheng.text.chat.environment import ConversationRefused
from dacheng.text.chat.limits import Refused
from dacheng.text.chat.messages import read_conversation
from dacheng.text.chat.renderer import _guarded
from dacheng.text.chat.to_json import to_json
from dacheng.text.chat.tracked import Tracked, join_pieces, runs_of, weld

GROW = "{% set ns = namespace(x=START) %}{% for i in range(99) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"


def grow(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


def render(template: str, **variables) -> str:
    chat = read_conversation(BY_HAND["a tool"]["messages"], BY_HAND["a tool"]["tools"], {})
    known = {"messages": chat.messages, "tools": chat.tools, "add_generation_prompt": False}
    return _guarded(lambda: environment.render(template, known | variables))


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "the number 1000000000"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}", "RecursionError|steps"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError|steps"),
        ("{% block a %}{{ self.a() }}{% endblock %}", "RecursionError"),
        ("{% for i in range(99999) %}{% for j in range(999) %}{{ i }}{% endfor %}{% endfor %}", "steps"),
        ("{{ 'a' * 10**9 }}", "a repetition"),
        ("{{ [0] * 10**9 }}", "a repetition"),
        ("{{ 10**9 * 'a' }}", "a repetition"),
        (grow("'a'", "ns.x + ns.x"), "a text of"),
        (grow("'a'", "ns.x ~ ns.x"), "a text of"),
        (grow("'a'", "ns.x.replace('a', 'aaaaaaaa')"), "a text of"),
        (grow("'ab'", "ns.x | replace('', ns.x)"), "a text of"),
        (grow("'ab'", "ns.x.join([ns.x, ns.x, ns.x])"), "a text of"),
        (grow("'ab'", "[ns.x, ns.x, ns.x] | join(ns.x)"), "a text of"),
        (grow("'{0}{0}'", "ns.x.format(ns.x)"), "a text of"),
        (grow("'%s%s'", "ns.x % (ns.x, ns.x)"), "a text of|TypeError"),
        (grow("[1]", "ns.x + ns.x"), "a list or dict"),
        (grow("[1]", "[ns.x, ns.x]"), "a list or dict"),
        (grow("[1]", "(ns.x, ns.x)"), "a list or dict"),
        (grow("[1]", "{'a': ns.x, 'b': ns.x}"), "a list or dict"),
        (grow("[1]", "[ns.x] | batch(2, ns.x) | list"), "a list or dict"),
        (grow("9", "ns.x * ns.x"), "an integer of"),
        ("{{ 9**9999 }}", "an integer of"),
        ("{{ '%0999999999d' % 1 }}", "a width"),
        ("{{ '%*d' % (10**9, 1) }}", "a width"),
        ("{{ '%0999999999d' | format(1) }}", "a width"),
        ("{{ '{:0999999999d}'.format(1) }}", "a width"),
        ("{{ '{:{w}}'.format(1, w=10**9) }}", "the number|a width"),
        ("{{ 'a' | center(10**8) }}", "the number"),
        ("{{ 'a'.ljust(10**9) }}", "the number"),
        ("{{ ('\\t' * 99999).expandtabs(99999) }}", "a text of"),
        ("{{ ('\\n' * 99999) | indent(99999) }}", "a text of"),
        ("{{ messages | tojson(indent=10**8) }}", "the number"),
        ("{{ [1] | batch(10**9, 'x') | list }}", "the number"),
        ("{% include 'secrets' %}", "the statement include"),
        ("{% import 'os' as os %}", "the statement import"),
        ("{% extends 'x' %}", "the statement extends"),
        ("{% autoescape true %}x{% endautoescape %}", "the statement autoescape"),
        ("{{ lipsum(n=10**6) }}", "lipsum|the number"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe|undefined"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages[0].content.__class__.__base__ }}", "unsafe"),
        ("{{ messages[0].content._runs[0] }}", "unsafe"),
        ("{{ messages[0].content.strip.__func__.__globals__ }}", "unsafe"),
        ("{{ raise_exception.__globals__.sys }}", "unsafe"),
        ("{{ namespace.__init__.__globals__ }}", "unsafe"),
        ("{{ (messages | map(attribute='__class__') | list)[0].x }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not callable|callable"),
        ("{{ messages[0].update(role='x') }}", "unsafe|callable"),
        ("{{ messages[0].content.encode() }}", "unsafe|callable"),
        ("{{ '{0.__class__.__mro__}'.format(messages) }}", "unsafe"),
        ("{% set ns = namespace(__class__=1) %}", "the name __class__"),
        ("{{ undefined_function() }}", "undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% if %}", "no Jinja: line 1"),
        ("{% generation %}", "no Jinja"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError|MemoryError|SyntaxError|no Jinja"),
        ("{{ messages | nosuchfilter }}", "no Jinja: line 1: No filter"),
        ("x" * (limits.MAX_SOURCE + 1), "a template of"),
    ],
)  # fmt: skip
def test_it_is_stopped_soon_and_says_why(template, what):
    began = time.process_time()
    with pytest.raises(DachengError, match=what) as caught:
        render(template)
    assert time.process_time() - began < 6
    assert caught.value.field in ("template", "messages") and caught.value.remedy


def test_the_clock_stops_what_counts_few_steps(monkeypatch):
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.05)
    with pytest.raises(DachengError, match="seconds"):
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")


PIECES = [
    "{{ messages }}", "{% for m in messages %}", "{% endfor %}", "{% if tools %}", "{% else %}", "{% endif %}",
    "{{ m.content", " }}", "| tojson", "| join(', ')", "* 99999", "~ messages", ".__class__", "[0]", "{{ 'a'", "]", "x",
    "{% set x = [", " %}", "{% macro f(y) %}", "{% endmacro %}", "{{ f(messages)", "{% generation %}", "| batch(99)",
    "{% endgeneration %}", "**99", "| replace('a', 'bb')", "{% continue %}", "{% raw %}", "\ud800", "\0", "é", "-%}",
    "{%-", "| list", "| map('upper')",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14))
def test_any_template_renders_or_is_refused(parts):
    try:
        assert isinstance(render("".join(parts)), str)
    except DachengError as error:
        assert error.remedy


def test_what_a_template_may_do_it_does():
    assert (
        render("{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }} {% endfor %}")
        == "system user "
    )
    assert render("{{ {'b': 1, 'a': '<é>'} | tojson }}") == '{"b": 1, "a": "<é>"}'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": 2,\n "b": 1\n}'
    assert render("{% set x %}a{{ 1 }}{% endset %}{{ x ~ x * 2 }}") == "a1a1a1"
    assert render("  {% if true %}\n  x\n  {% endif %}\ny") == "  x\ny"
    assert render("{{ '%s-%d' % ('a', 7) }}{{ '{:>4}'.format(5) }}{{ 2**10 }}") == "a-7   51024"
    assert render("{{ messages | map(attribute='role') | join(' ') }}").startswith("system user assistant")
    assert render("{% for i in [1] %}{{ ', '.join(['a', 'b']) }}{{ 'a b'.split(' ') | last }}{% endfor %}") == "a, bb"
    assert render("{{ dict(a=1) }}{{ range(3) | list }}{{ [3, 1] | sort | first }}") == "{'a': 1}[0, 1, 2]1"
    with pytest.raises(ConversationRefused, match="no"), limits.budget():
        environment.render("{{ raise_exception('no') }}", {})
    with pytest.raises(Refused), limits.budget():
        environment.render("{{ 'a' * 10**10 }}", {})


# --- strings that know who wrote them -------------------------------------------------------------------------------
letters = st.text(alphabet="ab \n,é", max_size=12)
pieces = st.lists(st.tuples(letters, st.integers(0, 3)), max_size=4)


def tracked(parts) -> str:
    return join_pieces([Tracked(text, code) if code else text for text, code in parts])


def codes(text: str) -> list[int]:
    return [code for length, code in runs_of(text) for _ in range(length)]


@given(pieces, letters, letters, st.integers(-9, 9), st.integers(-9, 9))
def test_operations_give_the_same_text_and_keep_sources(parts, a, b, i, j):
    whole = tracked(parts)
    plain, of = str.__str__(whole), codes(whole)
    marked = list(zip(plain, of))

    def same(found: str, expected: str, sources: list[int] | None = None) -> None:
        assert found == expected and len(codes(found)) == len(expected)
        if sources is not None:
            assert codes(found) == sources

    same(whole[i:j], plain[i:j], of[i:j])
    same(whole[::-1], plain[::-1], of[::-1])
    same(whole + a, plain + a, of + [0] * len(a))
    same(a + whole, a + plain, [0] * len(a) + of)
    start = len(plain) - len(plain.lstrip())
    same(whole.strip(), plain.strip(), of[start : start + len(plain.strip())])
    same(whole.rstrip("a"), plain.rstrip("a"), of[: len(plain.rstrip("a"))])
    same(whole.upper(), plain.upper())
    same(join_pieces(whole), plain, of)
    for sep in (a or ",", None):
        assert list(whole.split(sep)) == plain.split(sep) and list(whole.rsplit(sep, 1)) == plain.rsplit(sep, 1)
        for piece in whole.split(sep) + whole.rsplit(sep, 1):
            assert codes(piece) == [] or any(codes(piece) == of[k : k + len(piece)] for k in range(len(of)))
    assert list(whole.splitlines()) == plain.splitlines()
    assert list(whole.partition(",")) == list(plain.partition(","))
    assert list(whole.rpartition("a")) == list(plain.rpartition("a"))
    same(
        whole.replace("a", b),
        plain.replace("a", b),
        [c for ch, code in marked for c in ([0] * len(b) if ch == "a" else [code])],
    )
    same(whole.removeprefix("a"), plain.removeprefix("a"))
    assert json.loads(to_json(whole)) == plain and to_json([whole, {"k": whole}]) == json.dumps(
        [plain, {"k": plain}], ensure_ascii=False
    )


@given(pieces, any_text)
def test_what_loses_the_places_keeps_the_sources(parts, text):
    whole = tracked(parts)
    made = weld(text, whole, 7, None)
    assert made == text
    used = set(codes(whole)) - {0}
    assert set(codes(made)) - {0} if used and text else True
    if len(used) == 1 and text:
        assert set(codes(made)) == used
