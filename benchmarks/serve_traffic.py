"""The traffic of benchmarks/serve.py: who asks what, and when. The same for a seed and a text.

Every conversation begins with one of a few system prompts, so that much of what a server computes could be shared; the
question behind it is its own. Lengths of questions and answers are log-uniform: many short ones, few long ones.
Arrivals are a Poisson process. Prompts are token ids, so that both servers read exactly the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

SYSTEM = (200, 600)  # tokens of a system prompt
QUESTION = (8, 256)
ANSWER = (16, 128)


@dataclass(frozen=True)
class Traffic:
    """prompts: token ids. answers: tokens to generate for each. gaps: from one arrival to the next, of mean 1."""

    prompts: list[list[int]]
    answers: list[int]
    gaps: list[float]

    def arrivals(self, rate: float) -> list[float]:
        """Seconds after the start; all at once for rate 0."""
        now, found = 0.0, []
        for gap in self.gaps:
            found.append(now)
            now += gap / rate if rate else 0.0
        return found

    def described(self) -> dict[str, Any]:
        whole = json.dumps([self.prompts, self.answers, self.gaps])
        return {
            "requests": len(self.prompts),
            "prompt_tokens": sum(map(len, self.prompts)),
            "answer_tokens": sum(self.answers),
            "sha256": sha256(whole.encode()).hexdigest()[:16],
        }


def make_traffic(tokenizer: Any, text: str, *, requests: int, systems: int, seed: int) -> Traffic:
    """tokenizer: of the model, with a chat template. text: where all words come from; it is read round and round."""
    from dacheng.text import ChatRenderer

    draw, renderer = random.Random(seed), ChatRenderer(tokenizer)
    ids = tokenizer.encode(text)

    def words(count: int) -> str:
        start = draw.randrange(len(ids))
        return str(tokenizer.decode((ids * 2)[start : start + count]))

    shared = [words(draw.randint(*SYSTEM)) for _ in range(systems)]
    prompts = [
        renderer.render(
            [
                {"role": "system", "content": draw.choice(shared)},
                {"role": "user", "content": words(_log_uniform(draw, QUESTION))},
            ],
            add_generation_prompt=True,
        ).token_ids
        for _ in range(requests)
    ]
    answers = [_log_uniform(draw, ANSWER) for _ in range(requests)]
    return Traffic([list(map(int, prompt)) for prompt in prompts], answers, [draw.expovariate(1) for _ in prompts])


def _log_uniform(draw: random.Random, between: Sequence[int]) -> int:
    low, high = between
    return round(low * (high / low) ** draw.random())
