"""Questions about code: which name does this, what does it return or raise, what is the default of an argument."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dacheng.rag.questions.question import Kind, Question, make_id
from dacheng.rag.questions.wording import is_identifier, third_person
from dacheng.rag.sentences import sentences

if TYPE_CHECKING:
    from dacheng.rag.passages import Passage

_RAISED = re.compile(r"\b([A-Z]\w*(?:Error|Exception|Warning|Exit|Interrupt|Iteration))\b")
_RAISES = re.compile(
    r"(?:^|[.,;] )(?:an? |the )?(?P<name>[A-Z]\w+) (?:exception |error )?(?:is|will be|gets) raised "
    r"(?P<when>if|when|for|unless) (?P<why>[^.;]{6,120})"
    r"|\b[Rr]aises? (?:an? |the )?(?P<name2>[A-Z]\w+)(?: exception| error)? "
    r"(?P<when2>if|when|for|unless) (?P<why2>[^.;]{6,120})"
)
_RETURNS = re.compile(
    r"^(?:Returns? |Returns: |(?:The|Its) (?:return value|result) is )(?P<what>(?!self\b|None\b)[^.;:]{4,90})"
)
_DANGLING = re.compile(r"(?: (?:of|for|with|to|in|on|at|by|from|a|an|the|and|or|used|like|this|is|are|be|will))+$")
_CUT = re.compile(
    r",|->| \(| [\"'`](?=\w+$)| (?:if|when|where|which|that|unless|given|using|so|such|as|containing|representing|"
    r"corresponding)\b|\s[-–]"
)
_IF = re.compile(r"^(?P<when>If|When) (?P<why>[^,;:]{8,80}), (?:then )?(?P<then>[^.;:]{12,110})\.?$")
_TOLD = {"class": "class", "method": "method", "function": "function", "module": "module"}
MAX_ARGUMENTS = 2  # questions on defaults of one signature
MAX_SIGNATURE = 4_000  # characters


def code_questions(passage: Passage) -> Iterator[Question]:
    """Each template's questions of one passage of code: a signature and what its author says of it."""
    name = passage.heading.split(" > ")[-1].strip()
    last = name.rsplit(".", 1)[-1]
    if not last.isidentifier() or last.startswith("_"):
        return
    arguments, words = split_signature(passage.text, last)
    said = [sentence.text for sentence in sentences(words) if not sentence.is_example]
    what = _what(passage, name, arguments is not None)
    if said:
        yield from _which(passage, name, last, what, said[0])
        yield from _does(passage, name, said[0])
    if what in ("function", "method"):
        yield from _returns(passage, name, said)
    yield from _raises(passage, name, said)
    yield from _conditions(passage, name, said)
    if arguments:
        yield from _defaults(passage, name, arguments)


def split_signature(text: str, last: str) -> tuple[str | None, str]:
    """(what is between the parentheses, the rest); (None, text) where the text begins with no signature of `last`."""
    head = re.match(rf"\s*(?:async )?(?:def |class )?(?:\w+\.)*{re.escape(last)}\(", text)
    if head is None:
        return None, text
    depth = 1
    for at in range(head.end(), min(len(text), head.end() + MAX_SIGNATURE)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return text[head.end() : at], text[at + 1 :].split("\n", 1)[-1] if "\n" in text[at:] else ""
    return None, text


def defaults(arguments: str) -> dict[str, str]:
    """Argument -> the source text of its default, for defaults that are constants and say something."""
    try:
        parsed = ast.parse(f"def f({arguments}): pass").body[0]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    assert isinstance(parsed, ast.FunctionDef)
    every = [*parsed.args.posonlyargs, *parsed.args.args]
    pairs = list(zip(reversed(every), reversed(parsed.args.defaults), strict=False))[::-1]
    pairs += [(a, d) for a, d in zip(parsed.args.kwonlyargs, parsed.args.kw_defaults, strict=True) if d is not None]
    found = {a.arg: ast.unparse(d) for a, d in pairs if isinstance(_constant(d), bool | int | float | str)}
    return {name: text for name, text in found.items() if len(text.strip("'\"")) > 0 and len(text) <= 40}


def _constant(node: ast.expr) -> object:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return node.value if isinstance(node, ast.Constant) else None


def _what(passage: Passage, name: str, signed: bool) -> str:
    last, _, before = name[::-1].partition(".")
    last, before = last[::-1], before[::-1]
    path = passage.source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if not signed and (path == name or path.endswith("." + name)):
        return "module"
    if last[:1].isupper():
        return "class"
    return "method" if before.rsplit(".", 1)[-1][:1].isupper() else "function"


def _question(passage: Passage, kind: Kind, text: str, answers: tuple[str, ...], reply: str) -> Question:
    return Question(
        make_id(kind, text, passage.key), text, answers, (passage.key,), kind, "en", True, reply, passage.source
    )


def _which(passage: Passage, name: str, last: str, what: str, first: str) -> Iterator[Question]:
    """The summary line, turned into a question for the name: twice, with its scope and without."""
    if len(first) > 140 or last.lower() in re.findall(r"\w+", first.lower()):
        return
    told = third_person(first.split("; ")[0])
    if told is None or len(told.split()) < 3:
        return
    scope = name.rpartition(".")[0]
    reply = f"It is {name}."
    if scope and what != "module":
        yield _question(passage, "which", f"Which {_TOLD[what]} of {scope} {told}?", (last,), reply)
    if len(told.split()) >= 5:
        yield _question(passage, "which", f"Which {_TOLD[what]} {told}?", (last,), reply)


def _does(passage: Passage, name: str, first: str) -> Iterator[Question]:
    """ "Delete a directory tree." -> what does it do? The answer is what stands after the verb."""
    told = third_person(first.split("; ")[0])
    if told is None or first.lower().startswith("return"):
        return
    verb = next((word for word in told.split() if not word.endswith("ly")), "")
    answer = _DANGLING.sub("", _CUT.split(told.partition(f"{verb} ")[2])[0].strip())
    if 2 <= len(answer.split()) <= 10:
        yield _question(passage, "definition", f"What does {name} do?", (answer,), f"It {told}.")


def _conditions(passage: Passage, name: str, said: list[str]) -> Iterator[Question]:
    """ "If X, Y." -> what happens if X? One of a passage."""
    for sentence in said:
        match = _IF.match(sentence)
        if match is None or len(match["then"].split()) > 14:
            continue
        then = match["then"].strip()
        answer = _DANGLING.sub("", _CUT.split(then)[0].strip())
        if len(answer.split()) >= 3:
            text = f"What happens in {name} {match['when'].lower()} {match['why']}?"
            yield _question(passage, "definition", text, (answer,), f"{then[0].upper()}{then[1:]}.")
            return


def _returns(passage: Passage, name: str, said: list[str]) -> Iterator[Question]:
    for sentence in said[:4]:
        match = _RETURNS.search(sentence)
        if match is None:
            continue
        what = _CUT.split(match["what"])[0].strip(" '\"()")
        if what.lower() in ("true", "false"):
            if when := re.match(r"\w+,? (if|when|for) ([^.;,]{6,90})", match["what"]):
                why = re.split(r",? (?:and|else|or) (?:False|True)\b", when[2])[0].strip()
                text = f"What does {name} return {when[1]} {why}?"
                yield _question(passage, "returns", text, (what,), f"It returns {what}.")
            return
        what = _DANGLING.sub("", what)
        bare = re.sub(r"^(?:an?|the|its) ", "", what)
        telling = len(bare.split()) > 1 or is_identifier(bare)
        if telling and len(bare.split()) <= 8 and bare.count("'") % 2 == bare.count('"') % 2 == 0:
            yield _question(passage, "returns", f"What does {name} return?", (bare,), f"It returns {what}.")
        return


def _raises(passage: Passage, name: str, said: list[str]) -> Iterator[Question]:
    for sentence in said:
        for match in _RAISES.finditer(sentence):
            error, when, why = (match[g] or match[f"{g}2"] for g in ("name", "when", "why"))
            if not _RAISED.fullmatch(error):
                continue
            text = f"What does {name} raise {when} {why.strip()}?"
            yield _question(passage, "raises", text, (error,), f"It raises {error}.")
            return
    named = {error for sentence in said if re.search(r"\b[Rr]ais", sentence) for error in _RAISED.findall(sentence)}
    if len(named) == 1:
        error = named.pop()
        yield _question(passage, "raises", f"Which exception can {name} raise?", (error,), f"It raises {error}.")


def _defaults(passage: Passage, name: str, arguments: str) -> Iterator[Question]:
    found = defaults(arguments)
    telling = sorted(found, key=lambda a: found[a] in ("True", "False", "0", "1"))[:MAX_ARGUMENTS]
    for argument in telling:
        text = f"What is the default of {argument} in {name}?"
        value = found[argument]
        yield _question(passage, "signature", text, (value,), f"The default of {argument} is {value}.")
