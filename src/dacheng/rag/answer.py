"""Answers from documents: retrieve, ask the model (or quote), cite, and abstain where the gate says so."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dacheng.errors import UsageError
from dacheng.protocols import Completion, LanguageModel, SamplingParams
from dacheng.rag.citations import Citation, best_sentences, citations, cite, citing
from dacheng.rag.gate import Gate
from dacheng.rag.prompting import SHOWN, SOURCE_TOKENS, Count, bare_messages, messages, source_texts
from dacheng.rag.questions.rarity import Rarity
from dacheng.rag.questions.wording import is_chinese

if TYPE_CHECKING:
    from dacheng.rag.retrieve import Hit, Retriever
    from dacheng.text import ChatRenderer

Mode = Literal["bare", "sources", "adapted", "quote"]
MODES: tuple[Mode, ...] = ("bare", "sources", "adapted", "quote")
FOUND = 5  # passages retrieved: what the gate looks at and what an abstention names
MAX_TOKENS = 96
_DECLINES = re.compile(
    r"\b(?:I (?:do not|don't) know|(?:sources?|documents?|texts?|context) (?:do|does|did)(?: not|n't) (?:say|mention|"
    r"contain|provide|state|specify)|(?:not|nothing) (?:is )?(?:mentioned|stated|provided|specified) in the (?:given )?"
    r"(?:sources?|documents?|text)|cannot (?:be )?answer(?:ed)?|no (?:information|answer))\b"
    r"|不知道|没有提到|未提及|无法回答",
    re.IGNORECASE,
)
QUOTED = 2  # sentences of a quote-only answer


@dataclass(slots=True)
class Answer:
    """text: with marks like [1], or that the documents do not say, with the nearest headings. draft: what the model (or
    the quote) said before the gate, "" where it was not asked. hits: what was retrieved; the first `shown` of it were
    the sources. seconds: of this answer; in a batch its share of the retrieval and its own time in the engine."""

    question: str
    mode: Mode
    text: str
    citations: list[Citation] = field(default_factory=list)
    abstained: bool = False
    gate_score: float = 1.0
    hits: list[Hit] = field(default_factory=list)
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    shown: int = 0
    draft: str = ""

    @property
    def cited_keys(self) -> list[str]:
        return [citation.key for citation in self.citations]

    @property
    def shown_text(self) -> str:
        """Everything in the sources that the answer may have names from: of the bare model, in all that was found."""
        used = self.hits[: self.shown] if self.shown else self.hits
        return "\n".join(f"{hit.passage.heading}\n{hit.passage.text}" for hit in used)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: hits as passage ids, headings and scores."""
        hits = [
            {"passage_id": h.passage.id, "key": h.passage.key, "heading": h.passage.heading, "source": h.passage.source,
             "first_line": h.passage.first_line, "score": h.score}
            for h in self.hits
        ]  # fmt: skip
        values = {name: getattr(self, name) for name in self.__slots__ if name not in ("hits", "citations")}
        return values | {"citations": [asdict(c) for c in self.citations], "hits": hits}


class Answerer:
    """Answers questions from one store.

    model, renderer: a language model and the renderer of its chats; without a renderer the prompt is plain text (for a
    model behind a URL). Without a model only mode="quote" answers. adapter_model: the same one with the adapter. gate:
    None lets everything pass. shown: sources in a prompt, for each mode. grammar: citations are forced to be well
    formed; off for a model that takes no grammar. rarity: of the store's terms; None counts them now.
    """

    def __init__(
        self,
        model: LanguageModel | None,
        renderer: ChatRenderer | None,
        retriever: Retriever,
        gate: Gate | None = None,
        adapter_model: LanguageModel | None = None,
        *,
        shown: dict[str, int] | None = None,
        tokens: int = SOURCE_TOKENS,
        grammar: bool = True,
        rarity: Rarity | None = None,
    ) -> None:
        self.model, self.renderer, self.retriever, self.gate = model, renderer, retriever, gate
        self.adapter_model, self.tokens, self.grammar = adapter_model, tokens, grammar
        self.shown = {"sources": SHOWN, "adapted": SHOWN, "quote": 1, "bare": 0} | (shown or {})
        self.rarity = rarity if rarity is not None else Rarity.of_store(retriever.store)

    def answer(self, question: str, mode: Mode = "adapted", *, gated: bool | None = None) -> Answer:
        """One answer. See answer_many."""
        return self.answer_many([question], mode, gated=gated)[0]

    def answer_many(self, questions: Sequence[str], mode: Mode, *, gated: bool | None = None) -> list[Answer]:
        """One answer a question, in one batch of the model's.

        gated: whether the gate may abstain; None: in "adapted" and "quote" only ("sources" and "bare" are what a model
        does by itself). What the gate stops is not generated. Raises UsageError for a mode whose model is missing.
        """
        if mode not in MODES:
            raise UsageError("no such mode", field="mode", value=mode, remedy=f"one of {', '.join(MODES)}")
        gated = mode in ("adapted", "quote") if gated is None else gated
        answers = [self._found(question, mode) for question in questions]
        stopped = [self.stops(answer) if gated else False for answer in answers]
        open_ = [answer for answer, stop in zip(answers, stopped, strict=True) if not stop]
        if mode == "quote":
            for answer in open_:
                self._quote(answer)
        elif open_:
            self._generate(open_, mode)
        for answer, stop in zip(answers, stopped, strict=True):
            if stop:
                abstain(answer)
        return answers

    def stops(self, answer: Answer) -> bool:
        """Whether the gate (or that nothing was found) makes this question one without an answer."""
        if answer.mode != "bare" and not answer.hits:
            return True
        return self.gate is not None and not self.gate.passes(answer.gate_score)

    def prompt(self, question: str, hits: Sequence[Hit], mode: Mode) -> list[dict[str, Any]]:
        """The conversation that a mode's model is given."""
        if mode == "bare":
            return bare_messages(question)
        return messages(question, hits, shown=self.shown[mode], tokens=self.tokens, count=self._count)

    @property
    def _count(self) -> Count | None:
        if self.renderer is None:
            return None
        encode = self.renderer.tokenizer.encode
        return lambda text: len(encode(text))

    def _found(self, question: str, mode: Mode) -> Answer:
        began = time.perf_counter()
        hits = self.retriever.search(question, FOUND)
        score = self.gate.score(question, hits, self.rarity) if self.gate else 1.0
        shown = min(self.shown[mode], len(hits))
        return Answer(question, mode, "", gate_score=score, hits=hits, shown=shown, seconds=time.perf_counter() - began)

    def _quote(self, answer: Answer) -> None:
        """The best sentences of the best passage under its heading: no model."""
        began = time.perf_counter()
        if answer.hits:
            passage = answer.hits[0].passage
            said = best_sentences(passage, answer.question, limit=QUOTED, rarity=self.rarity)
            heading = passage.heading.rpartition(" > ")[2]
            head = "" if said and said[0].startswith(heading) else f"{heading}: "
            answer.text = answer.draft = f"{head}{' … '.join(said)} [1]"
            answer.citations = [cite(1, passage, answer.question)]
        answer.seconds += time.perf_counter() - began

    def _generate(self, answers: list[Answer], mode: Mode) -> None:
        model = self.adapter_model if mode == "adapted" else self.model
        if model is None:
            missing = "an adapter" if mode == "adapted" else "a model"
            raise UsageError(f"this mode needs {missing}", field="mode", value=mode, remedy='use mode="quote"')
        chats = [self.prompt(answer.question, answer.hits, mode) for answer in answers]
        prompts: list[str | list[int]] = [self._rendered(chat) for chat in chats]
        params = [self._params(answer) for answer in answers]
        began = time.perf_counter()
        completions = model.generate(prompts, params)
        share = (time.perf_counter() - began) / len(answers)
        for answer, completion in zip(answers, completions, strict=True):
            self._take(answer, completion, share)

    def _rendered(self, chat: list[dict[str, Any]]) -> str | list[int]:
        if self.renderer is None:
            return "\n\n".join(message["content"] for message in chat) + "\n"
        return list(self.renderer.render(chat, add_generation_prompt=True).token_ids)

    def _params(self, answer: Answer) -> SamplingParams:
        grammar = citing(answer.shown) if self.grammar and answer.shown else None
        return SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, grammar=grammar)

    @staticmethod
    def _take(answer: Answer, completion: Completion, seconds: float) -> None:
        answer.text = answer.draft = completion.text.strip()
        answer.abstained = declines(answer.text)
        answer.citations = citations(answer.text, answer.hits, answer.shown, answer.question)
        answer.prompt_tokens = len(completion.prompt_token_ids)
        answer.completion_tokens = len(completion.token_ids)
        answer.seconds += seconds


def declines(text: str) -> bool:
    """Whether a model says by itself that it does not know, which counts as abstaining."""
    return bool(_DECLINES.search(text))


def abstain(answer: Answer) -> None:
    """Makes it the answer that the documents do not say, naming what is nearest. The draft stays."""
    nearest = list(dict.fromkeys(hit.passage.heading for hit in answer.hits))[:3]
    if is_chinese(answer.question):
        answer.text = "文档里没有答案。" + (f"最接近的是：{'；'.join(nearest)}。" if nearest else "")
    else:
        answer.text = "The documents do not say." + (f" Nearest: {'; '.join(nearest)}." if nearest else "")
    answer.citations, answer.abstained = [], True


def shown_sources(answer: Answer, tokens: int = SOURCE_TOKENS, count: Count | None = None) -> list[str]:
    """The texts that stood in the prompt, for the page."""
    return source_texts(answer.question, answer.hits, shown=answer.shown, tokens=tokens, count=count)
