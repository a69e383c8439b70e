"""ChatRenderer: a conversation in, token ids and the loss mask out. The only place where a chat template is applied."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import jinja2

from dacheng.errors import DachengError, UsageError
from dacheng.text.chat import environment
from dacheng.text.chat.assistant import assistant_spans, generated_spans
from dacheng.text.chat.builtin import TEMPLATES
from dacheng.text.chat.encoding import ChatEncoder
from dacheng.text.chat.environment import ConversationRefused
from dacheng.text.chat.limits import Refused
from dacheng.text.chat.messages import ASSISTANT, Conversation, read_conversation
from dacheng.text.chat.tracked import GENERATED, runs_of
from dacheng.text.directory import ROLES as TOKEN_ROLES
from dacheng.text.directory import token_name

if TYPE_CHECKING:
    from dacheng.text.tokenizer import Tokenizer

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_KEPT = ("content", "tool_calls")  # what no template may leave out unsaid; thoughts of earlier turns it may


@dataclass(frozen=True, slots=True)
class Span:
    """The characters [start, end) of the text in which one message of the conversation stands: its own words, without
    what the template puts around them. `index` counts the messages that were given."""

    index: int
    role: str
    start: int
    end: int


@dataclass
class Rendered:
    """text: what the template made. token_ids: its ids. offsets: the characters [start, end) of each token. spans: one
    for each message of which something is in the text. notes: what was changed or left out, for people.

    mask: 1 for each token that the assistant has to say, the end of its turn included, else 0. assistant_spans: the
    same in characters. Both are worked out when they are first asked for, and raise DachengError, naming the message,
    when the template doesn't tell.
    """

    text: str
    token_ids: list[int]
    offsets: list[tuple[int, int]]
    spans: list[Span]
    notes: list[str] = field(default_factory=list)
    _assistant: Callable[[], list[tuple[int, int]]] = field(default=list, repr=False)

    @cached_property
    def assistant_spans(self) -> list[tuple[int, int]]:
        return self._assistant()

    @cached_property
    def mask(self) -> list[int]:
        mask = [0] * len(self.token_ids)
        at = 0
        for start, end in self.assistant_spans:
            while at < len(mask) and self.offsets[at][1] <= start:
                at += 1
            while at < len(mask) and self.offsets[at][0] < end:
                mask[at] = 1
                at += 1
        return mask


class ChatRenderer:
    """A tokenizer and its chat template.

    template: Jinja source, the name of one of the tokenizer's own templates, or of one of `TEMPLATES` (chatml, llama3,
    mistral, gemma, qwen, deepseek). None: the tokenizer's own; of several "tool_use" when there are tools, else
    "default".

    system: "merge" puts leading system messages in front of the first user message, for families that have no system
    role; "template" leaves them to the template. trust_content: special tokens' names inside messages become their
    ids, as transformers does by default; otherwise what a user writes is never more than text (transformers'
    sanitize_control_tokens). strict: a message or tools that the template leaves out are an error, not a note. roles:
    further roles beside the usual ones. now: the present for templates that print the date; None: the clock.

    The object does not change and may be used from several threads. Raises DachengError when there is no template, or
    the template is none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str | None = None,
        *,
        system: Literal["template", "merge"] = "template",
        trust_content: bool = False,
        strict: bool = True,
        roles: Sequence[str] = (),
        now: datetime | None = None,
    ) -> None:
        if system not in ("template", "merge"):
            raise UsageError("no such way", field="system", value=system, remedy='use "template" or "merge"')
        self.tokenizer, self.template = tokenizer, _find(tokenizer, template, tools=False)
        self._with_tools = _find(tokenizer, template, tools=True)
        self._merge, self._trusted, self._strict = system == "merge", trust_content, strict
        self._roles, self._now = tuple(roles), now
        for source in {self.template, self._with_tools}:
            _guarded(lambda source=source: environment.compiled(source))  # type: ignore[misc]
        config = tokenizer.config
        names = {role: token_name(config, role) for role in TOKEN_ROLES}
        self._special = {role: name for role, name in names.items() if name is not None}
        self._encoders: dict[str, ChatEncoder] = {}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **template_variables: Any,
    ) -> Rendered:
        """messages: {"role", "content", …} each; content is text or a list of {"type": "text", "text"}; tool_calls
        hold arguments as an object or as its JSON text. tools: JSON schemas. add_generation_prompt: end with the
        header of the assistant's turn. continue_final_message: end inside the last message, for the model to go on.
        template_variables: what else the template knows (enable_thinking=False, date_string="26 Jul 2024").

        Raises UsageError on messages that are none, DachengError naming the reason when the template refuses the
        conversation, breaks, takes too long, or leaves a message out.
        """
        source = self._with_tools if tools else self.template
        tokens = {name: value for name, value in template_variables.items() if name in self._special}
        others = {name: value for name, value in template_variables.items() if name not in tokens}
        chat = read_conversation(messages, tools, others, roles=self._roles, merge_system=self._merge)
        known = {"documents": None} | self._special | tokens | chat.variables

        def text_of(part: Sequence[dict[str, Any]], prompt: bool) -> str:
            variables = known | {"messages": list(part), "tools": chat.tools, "add_generation_prompt": prompt}
            return self._text(source, variables)

        text = text_of(chat.messages, add_generation_prompt)
        if continue_final_message:
            if add_generation_prompt:
                raise UsageError("a message is either continued or begun", field="continue_final_message", value=True,
                                 remedy="leave out add_generation_prompt")  # fmt: skip
            text = _cut_behind_final(text, chat)
        notes = chat.notes + _left_out(text, chat, self._strict)
        ids, offsets = self._encoder(source)(
            text, trusted=self._trusted, by_assistant=lambda code: _role_of(chat, code) in ASSISTANT
        )

        def assistant() -> list[tuple[int, int]]:
            if _GENERATION.search(source):
                return generated_spans(text)
            encoder = self._encoder(source)
            how = {"prompted": add_generation_prompt, "open_ended": continue_final_message}
            return assistant_spans(text, chat, text_of, encoder.special, encoder.added, **how)

        return Rendered(str.__str__(text), ids, offsets, _spans(text, chat), notes, assistant)

    def _text(self, source: str, variables: Mapping[str, Any]) -> str:
        token = environment.now.set(self._now)
        try:
            return _guarded(lambda: environment.render(source, variables))
        finally:
            environment.now.reset(token)

    def _encoder(self, source: str) -> ChatEncoder:
        if source not in self._encoders:
            self._encoders[source] = ChatEncoder(self.tokenizer, environment.literal_text(source))
        return self._encoders[source]


def _find(tokenizer: Tokenizer, template: str | None, tools: bool) -> str:
    """The source of the template that is meant."""
    stored = tokenizer.config.get("chat_template")
    if isinstance(stored, list):
        own = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)}
    else:
        own = {} if stored is None else {"default": stored}
    if template is None:
        name = "tool_use" if tools and "tool_use" in own else "default"
        found = own.get(name)
        if isinstance(found, str):
            return found
        raise DachengError(
            "this tokenizer has no chat template" + (f" named default, only {', '.join(map(str, own))}" if own else ""),
            field="template", remedy=f"choose one that the model was trained with: template= Jinja text, or one of "
            f"{', '.join([*map(str, own), *TEMPLATES])}",
        )  # fmt: skip
    for known in (own, TEMPLATES):
        named = known.get(template)
        if isinstance(named, str):
            return named
    if "{" not in template:
        raise UsageError("there is no template of this name", field="template", value=template,
                         remedy=f"use Jinja text or one of {', '.join([*map(str, own), *TEMPLATES])}")  # fmt: skip
    return template


def _guarded(work: Callable[[], Any]) -> Any:
    """Runs what belongs to the template and turns whatever it raises into an error that says so."""
    try:
        return work()
    except DachengError:
        raise
    except ConversationRefused as error:
        raise _refusal(str(error)) from None
    except Refused as error:
        raise DachengError(f"the chat template was stopped: {error.what}", field="template",
                           remedy="use the template of the model's publisher, or one of "
                           + ", ".join(TEMPLATES)) from None  # fmt: skip
    except jinja2.TemplateSyntaxError as error:
        raise DachengError(f"the chat template is no Jinja: line {error.lineno}: {error.message}", field="template",
                           remedy="correct it") from None  # fmt: skip
    except Exception as error:  # a template is a program: it can fail in any way that Python can
        kind = type(error).__name__
        raise DachengError(f"the chat template failed: {kind}: {error}", field="messages",
                           remedy="see whether the conversation has what the template asks for") from error  # fmt: skip


def _refusal(reason: str) -> DachengError:
    """What raise_exception said, and what can be done about the usual reasons."""
    said = reason.lower()
    if "system" in said and "alternat" not in said:
        remedy = 'put the system text into the first user message: ChatRenderer(…, system="merge") does it'
    elif "alternat" in said:
        remedy = ('join neighbouring messages of one role, begin with "user"; if it is the system message that stands '
                  'in the way, ChatRenderer(…, system="merge")')  # fmt: skip
    elif "tool" in said:
        remedy = "see that each tool call is answered by one tool message, in order, with the id that the call has"
    else:
        remedy = "change the conversation as the template asks"
    return DachengError(f"the chat template refuses the conversation: {reason}", field="messages", remedy=remedy)


def _cut_behind_final(text: str, chat: Conversation) -> str:
    """`text` up to the end of the last message's content."""
    last = chat.indices[-1] if chat.indices else None
    end = position = 0
    for length, code in runs_of(text):
        position += length
        code &= ~GENERATED
        if last is not None and chat.message_of(code) == last and chat.sources[code - 1][1] == "content":
            end = position
    if not end:
        raise DachengError("the last message has no content in the text that could be continued", field="messages",
                           value=None if last is None else f"messages[{last}]",
                           remedy="use add_generation_prompt=True to begin a new one")  # fmt: skip
    return text[:end]


def _left_out(text: str, chat: Conversation, strict: bool) -> list[str]:
    """Notes on fields that are not in the text. DachengError for a whole message, tool calls or tools, if strict."""
    there = {code & ~GENERATED for _, code in runs_of(text)}
    notes = []
    owners = {chat.sources[code - 1][0] for code in there if 0 < code <= len(chat.sources)}
    given = dict(zip(chat.indices, chat.messages))
    for code, (owner, key) in enumerate(chat.sources, 1):
        if code in there or owner == "variables":
            continue
        if owner == "tools":
            lost, where = True, f"tools[{key}]"
        else:
            blank = key == "content" and isinstance(owner, int) and not _has_words(given.get(owner, {}).get(key, "x"))
            lost = key == "tool_calls" or (key == "content" and owner not in owners)
            where = f"messages[{owner}].{key}"
            if blank or key not in (*_KEPT, "reasoning_content"):
                continue
        if lost and strict:
            what = "takes no tools" if owner == "tools" else f"leaves out {key} of the role " + repr(
                given[owner]["role"] if isinstance(owner, int) and owner in given else "system")  # fmt: skip
            raise DachengError(f"the chat template {what}", field=where, remedy="use a template that has a place for "
                               "it, or ChatRenderer(…, strict=False) to leave it out")  # fmt: skip
        notes.append(f"{where} was left out by the template")
    return notes


def _has_words(content: Any) -> bool:
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text", "x") if isinstance(part, dict) else part for part in parts]
    return any(not isinstance(text, str) or text.strip() for text in texts)


def _role_of(chat: Conversation, code: int) -> str | None:
    index = chat.message_of(code)
    return next((m["role"] for i, m in zip(chat.indices, chat.messages) if i == index), None)


def _spans(text: str, chat: Conversation) -> list[Span]:
    """From the first to the last character of each message."""
    limits: dict[int, tuple[int, int]] = {}
    position = 0
    for length, code in runs_of(text):
        index = chat.message_of(code & ~GENERATED)
        if index is not None:
            limits[index] = (limits.get(index, (position, 0))[0], position + length)
        position += length
    roles = dict(zip(chat.indices, (message["role"] for message in chat.messages)))
    return [Span(i, roles.get(i, "system"), start, end) for i, (start, end) in sorted(limits.items())]
