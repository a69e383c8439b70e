"""Questions with several answers, of which a language model finds one likelier than the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dacheng.errors import UsageError

_LONGEST_LINE, _MOST_CHOICES = 2**20, 64


@dataclass(frozen=True, slots=True)
class Choice:
    """`prompt` is continued by one of `choices`; `answer` is the right one's index."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


def read_choices(path: Path) -> list[Choice]:
    """JSON lines of {"prompt": text, "choices": [text, …], "answer": index}. Raises UsageError naming the line."""
    found = []
    try:
        with open(path, encoding="utf-8") as file:
            lines = iter(lambda: file.readline(_LONGEST_LINE + 1), "")
            for number, line in enumerate(lines, 1):
                if line.strip():
                    found.append(_choice(line, f"{path}, line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the task cannot be read: {error}", field="task", value=str(path),
                         remedy="check the path") from None  # fmt: skip
    if not found:
        raise UsageError("the task has no questions", field="task", value=str(path), remedy="one JSON object a line")
    return found


def _choice(line: str, where: str) -> Choice:
    remedy = '{"prompt": "2 + 2 =", "choices": [" 3", " 4"], "answer": 1}'
    try:
        value = json.loads(line) if len(line) <= _LONGEST_LINE else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"{where} is no JSON object", field="task", value=line[:80], remedy=remedy)
    prompt, choices, answer = value.get("prompt"), value.get("choices"), value.get("answer")
    texts = isinstance(choices, list) and 2 <= len(choices) <= _MOST_CHOICES and all(
        isinstance(choice, str) and choice for choice in choices
    )  # fmt: skip
    if not isinstance(prompt, str) or not prompt or not texts or type(answer) is not int:
        raise UsageError(f"{where} is no question", field="task", value=line[:80], remedy=remedy)
    assert isinstance(choices, list)
    if not 0 <= answer < len(choices):
        raise UsageError(f"{where}: the answer is none of the choices", field="answer", value=answer, remedy=remedy)
    return Choice(prompt, tuple(choices), answer)


def answer_choices(model: Any, tokenizer: Any, questions: Sequence[Choice]) -> list[int]:
    """1 for each question whose right answer has the highest log-probability per byte (lm-eval's acc_norm), else 0."""
    import torch

    from dacheng.evaluate.perplexity import scoring, token_nats
    from dacheng.nn.contexts import DenseCausal

    hits, longest = [], model.traits.longest_text
    with scoring(model):
        for question in questions:
            scores = []
            prompt = tokenizer.encode(question.prompt)
            for choice in question.choices:
                ids = tokenizer.encode(question.prompt + choice)
                new = max(1, len(ids) - len(prompt))  # where the boundary's tokens merge, at least the last one
                ids = ids[-longest - 1 :]
                if len(ids) < 2:
                    raise UsageError("a question and an answer take two tokens or more", field="task",
                                     value=question.prompt, remedy="ask more of it")  # fmt: skip
                new = min(new, len(ids) - 1)
                row = torch.tensor([ids])
                hidden = model(row[:, :-1], torch.arange(len(ids) - 1)[None], DenseCausal())[0]
                nats = float(token_nats(model, hidden[-new:], row[0, -new:]).sum())
                scores.append(nats / len(choice.encode("utf-8")))
            hits.append(int(scores.index(min(scores)) == question.answer))
    return hits
