"""The sandbox that chat templates run in: Jinja's immutable sandbox, set up as transformers sets it up, with limits on
what a template may use up (`limits`) and with strings that remember who wrote them (`tracked`).

Settings after transformers 5, utils/chat_template_utils.py (_compile_jinja_template): trim_blocks, lstrip_blocks, loop
controls, tojson without HTML escapes, raise_exception, strftime_now, and the tag {% generation %}.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

from dacheng.text.chat import limits
from dacheng.text.chat.limits import Refused
from dacheng.text.chat.to_json import to_json
from dacheng.text.chat.tracked import Tracked, generated, join_pieces, join_with, weld

# Not there, because no chat template needs them and each can grow or change from run to run.
_NO_FILTERS = ("wordwrap", "urlize", "xmlattr", "pprint", "random", "filesizeformat")
_ELEMENTS = ("default", "d", "first", "last", "min", "max", "attr")
_NO_STATEMENTS: dict[type[nodes.Node], str] = {
    nodes.Include: "include", nodes.Import: "import", nodes.FromImport: "from … import", nodes.Extends: "extends",
    nodes.ScopedEvalContextModifier: "autoescape",
}  # fmt: skip

now: ContextVar[datetime | None] = ContextVar("now", default=None)
"""What strftime_now takes for the present; None: the clock."""


class ConversationRefused(Exception):
    """The template itself says, by raise_exception, that it does not take this conversation."""


class Arguments(dict):
    """The arguments of a tool call: an object for templates that write it by tojson, and its JSON text for those that
    put it between strings. `text` is the JSON that the message had, if it had it as text."""

    def __init__(self, values: Mapping[str, Any], text: str | None = None) -> None:
        super().__init__(values)
        self._text = text

    def __str__(self) -> str:
        return self._text if self._text is not None else to_json(dict(self))


class _Code(CodeGenerator):
    """Generates code that counts its steps, and keeps sources through `~`."""

    environment: Environment

    def blockvisit(self, body: Iterable[nodes.Node], frame: Any) -> None:
        self.writeline("environment.tick()")  # each pass of a loop, each branch, each macro's call
        super().blockvisit(body, frame)

    def visit_Output(self, node: nodes.Output, frame: Any) -> None:
        self.writeline("environment.tick()")
        super().visit_Output(node, frame)

    def visit_Assign(self, node: nodes.Assign, frame: Any) -> None:
        self.writeline("environment.tick()")
        super().visit_Assign(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.tilde((")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Any) -> None:
        self._container(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:
        self._container(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Any) -> None:
        if node.ctx == "load":
            self._container(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def _container(self, visit: Callable[[Any, Any], None], node: Any, frame: Any) -> None:
        self.write("environment.container(")
        visit(node, frame)
        self.write(")")


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}: what is inside was written by the assistant."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return generated(caller())


class _TemplateNamespace(Namespace):
    """Attributes that begin with an underscore would be a way to Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        Namespace.__init__(self, _checked_names(dict(*rest, **kwargs)))

    def __setitem__(self, name: str, value: Any) -> None:
        Namespace.__setitem__(self, *next(iter(_checked_names({name: value}).items())))


def _checked_names(values: dict[str, Any]) -> dict[str, Any]:
    for name in values:
        if isinstance(name, str) and name.startswith("_"):
            raise Refused(f"the name {name} in a namespace")
    return values


class Environment(ImmutableSandboxedEnvironment):
    """One for all templates; it has no state of its own. Rendering happens inside `limits.budget()`."""

    code_generator_class = _Code
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=self.as_text,
            undefined=jinja2.Undefined,
            cache_size=0,
        )
        self.filters = {name: _guarded(name, filter_) for name, filter_ in self._filters().items()}
        for name in ("lipsum", "cycler", "joiner"):
            self.globals.pop(name)
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),  # noqa: PLW0108 - not the type, with its attributes
            "namespace": _TemplateNamespace,
        }

    def _filters(self) -> dict[str, Callable[..., Any]]:
        kept = {name: filter_ for name, filter_ in self.filters.items() if name not in _NO_FILTERS}
        return kept | {"tojson": to_json, "join": _join, "safe": lambda text: text, "string": self.as_text}

    # --- what the generated code calls --------------------------------------------------------------------------------
    tick = staticmethod(limits.tick)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Puts the output of a macro, a block or the template together."""
        pieces = list(pieces)
        limits.check_text(sum(map(len, pieces)))
        return join_pieces(pieces)

    def tilde(self, values: Iterable[Any]) -> str:
        return self.concat([str(self.as_text(value)) for value in values])

    @staticmethod
    def container(value: Any) -> Any:
        return limits.check_items(value)

    @staticmethod
    def as_text(value: Any) -> str:
        """Any value as the template prints it."""
        if isinstance(value, str):
            return value
        if isinstance(value, Arguments):
            return str(value)
        if isinstance(value, dict | list | tuple):
            limits.check_items(value)
        if value is None or isinstance(value, int | float | jinja2.Undefined):
            return str(value)
        return weld(str(value), value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if isinstance(left, Arguments) and isinstance(right, str):
                left = str(left)
            elif isinstance(right, Arguments) and isinstance(left, str):
                right = str(right)
        limits.check_operator(operator, left, right)
        found = super().call_binop(context, operator, left, right)
        if isinstance(found, str):
            return found if isinstance(found, Tracked) or operator == "+" else weld(found, left, right)
        return limits.check_items(found) if isinstance(found, list | tuple) else found

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        limits.tick()
        owner = getattr(__obj, "__self__", None)
        if not isinstance(owner, str) or isinstance(__obj, Macro | BlockReference | LoopContext):
            if __obj is __self.globals["range"]:
                limits.check_numbers(args)
            return super().call(__context, __obj, *args, **kwargs)
        name = getattr(__obj, "__name__", "")
        kwargs = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}
        if name == "join" and len(args) == 1:
            args = (list(args[0]),)
        limits.check_method(owner, name, args, kwargs)
        if name == "join":
            return join_with(owner, *args, **kwargs)
        return _settled(super().call(__context, __obj, *args, **kwargs), (owner, *args, *kwargs.values()))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        text = getattr(value, "__self__", None)
        name = getattr(value, "__name__", "")
        if not isinstance(text, str) or name not in ("format", "format_map"):
            return None

        def layout(*args: Any, **kwargs: Any) -> str:
            limits.check_method(text, name, args, kwargs)
            if name == "format_map":
                (kwargs,) = args
                args = ()
            made = SandboxedFormatter(self).vformat(str.__str__(text), args, kwargs)
            return weld(made, text, list(args), dict(kwargs))

        return layout

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr == "encode":  # bytes would forget who wrote them
            return False
        return super().is_safe_attribute(obj, attr, value)


def _join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    items = list(value)
    if attribute is not None:
        parts = attribute.split(".") if isinstance(attribute, str) else [attribute]
        items = [functools.reduce(ENVIRONMENT.getitem, parts, item) for item in items]
    texts = [str(ENVIRONMENT.as_text(item)) for item in items]
    limits.check_text(sum(map(len, texts)) + len(texts) * len(d))
    return join_with(str(d), texts)


def _guarded(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts as a step, is refused before it would grow without bound, and keeps sources."""
    passed = 1 if hasattr(filter_, "jinja_pass_arg") else 0  # the context or environment comes first

    @functools.wraps(filter_)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        limits.tick()
        values = args[passed:]
        if name in _ELEMENTS:  # what they return is one of the values that they were given
            return filter_(*args, **kwargs)
        if values and isinstance(values[0], str):
            limits.check_method(values[0], name, values[1:], kwargs)
        else:
            limits.check_numbers([*values[1:], *kwargs.values()])
        return _settled(filter_(*args, **kwargs), (*values, *kwargs.values()))

    return guarded


def _settled(found: Any, origins: tuple[Any, ...]) -> Any:
    """What a function returned, with the sources of what it was given, and in bounds."""
    if isinstance(found, Tracked):
        return found
    if isinstance(found, str):
        limits.check_text(len(found))
        same = [origin for origin in origins if isinstance(origin, Tracked) and str.__eq__(origin, found)]
        return same[0] if same else weld(found, *origins)
    return limits.check_items(found) if isinstance(found, list | tuple | dict) else found


def _raise_exception(message: Any) -> str:
    raise ConversationRefused(str(message))


def _strftime_now(layout: str) -> str:
    return (now.get() or datetime.now()).strftime(layout)


ENVIRONMENT = Environment()


@functools.lru_cache(maxsize=64)
def compiled(source: str) -> jinja2.Template:
    """Raises Refused for what templates may not do, jinja2.TemplateSyntaxError, or what Python's compiler raises."""
    if len(source) > limits.MAX_SOURCE:
        raise Refused(f"a template of {len(source):,} characters, the most is {limits.MAX_SOURCE:,}")
    with limits.budget():
        for node in ENVIRONMENT.parse(source).find_all(tuple(_NO_STATEMENTS)):
            raise Refused(f"the statement {_NO_STATEMENTS[type(node)]}")
        return ENVIRONMENT.from_string(source)


@functools.lru_cache(maxsize=64)
def literal_text(source: str) -> str:
    """All text that the template itself writes, its parts kept apart by NUL."""
    tree = ENVIRONMENT.parse(source)
    found = [node.data for node in tree.find_all(nodes.TemplateData)]
    return "\0".join(found + [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)])


def render(source: str, variables: Mapping[str, Any]) -> str:
    """The template's text, tracked. Raises Refused, ConversationRefused, or what the template's errors are."""
    template = compiled(source)
    pieces: list[str] = []
    length = 0
    with limits.budget():
        for piece in template.root_render_func(template.new_context(dict(variables))):
            length += len(piece)
            limits.check_text(length)
            pieces.append(piece)
    return join_pieces(pieces)
