"""Questions that a language model writes, for those who have a larger one: checked as the templates' are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dacheng.protocols import Grammar, LanguageModel, SamplingParams
from dacheng.rag.questions.hand import holds
from dacheng.rag.questions.question import Question, make_id
from dacheng.rag.questions.wording import is_chinese
from dacheng.records import Drops

if TYPE_CHECKING:
    from dacheng.rag.passages import Passage

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "question": {"type": "string", "minLength": 8, "maxLength": 200},
        "answer": {"type": "string", "minLength": 1, "maxLength": 80},
    },
    "required": ["question", "answer"],
    "additionalProperties": False,
}
_ASK_EN = (
    "Write one question that the passage below answers, in words of your own, and its answer, copied exactly from the "
    'passage (a few words). Reply with JSON: {{"question": "…", "answer": "…"}}\n\n'
    "Passage ({heading}):\n{text}\n\nJSON:"
)
_ASK_ZH = (
    "根据下面的段落用自己的话提一个问题，"
    "并从段落中原样抄出答案（几个字）。"
    '只回复JSON：{{"question": "…", "answer": "…"}}\n\n'
    "段落（{heading}）：\n{text}\n\nJSON："
)
MAX_PASSAGE = 1_500  # characters shown to the model


def questions_by_model(
    model: LanguageModel, passages: Sequence[Passage], drops: Drops | None = None, *, grammar: bool = True
) -> list[Question]:
    """One question a passage at most, each marked synthetic, of kind "model".

    What a passage says is data: a model that is led astray by it only writes a worse question. Dropped and counted:
    no_json, answer_not_in_passage, answer_in_question. grammar: off for a model that takes none.
    """
    drops = Drops() if drops is None else drops
    form = Grammar.json_schema(_SCHEMA) if grammar else None
    params = SamplingParams(max_tokens=160, temperature=0.0, grammar=form)
    prompts = [
        (_ASK_ZH if is_chinese(p.text) else _ASK_EN).format(heading=p.heading, text=p.text[:MAX_PASSAGE])
        for p in passages
    ]
    found = []
    for passage, completion in zip(passages, model.generate(prompts, params), strict=True):
        question, reason = _read(completion.text, passage)
        if question is None:
            drops.drop(reason, example=completion.text[:120])
        else:
            drops.keep()
            found.append(question)
    return found


def _read(text: str, passage: Passage) -> tuple[Question | None, str]:
    """The question in a reply; or None and why there is none."""
    start, end = text.find("{"), text.rfind("}")
    try:
        values = json.loads(text[start : end + 1])
        asked, answer = str(values["question"]).strip(), str(values["answer"]).strip()
    except (ValueError, KeyError, TypeError):
        return None, "no_json"
    if not asked or not answer or len(answer) > 80 or not holds(passage, answer):
        return None, "answer_not_in_passage"
    if answer.casefold() in asked.casefold():
        return None, "answer_in_question"
    language = "zh" if is_chinese(asked) else "en"
    reply = f"{answer}。" if language == "zh" else f"It is {answer}."
    key = make_id("model", asked, passage.key)
    return Question(key, asked, (answer,), (passage.key,), "model", language, True, reply, passage.source), ""
