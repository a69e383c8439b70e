"""A model whose answers are kept in a file, so that what was asked once is not asked again after Ctrl-C or a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dacheng.errors import UsageError
from dacheng.formats.json_files import parse_json
from dacheng.protocols import Completion, LanguageModel, SamplingParams

BATCH = 32  # answers between two writes
_MAX_LINE = 1 << 20  # bytes; what is longer was not written by us
_ANSWERED = ("stop", "length")  # what was cancelled, late or broken is asked again by the next run
Prompt = str | Sequence[int]


class RememberedModel:
    """A LanguageModel in front of another. Of each completion the file keeps text, finish_reason and top_logprobs.

    identity: what tells this model from another (the hash of its weights, its URL): a question counts as asked only
    with the same identity and the same parameters. Meant for questions with one answer (temperature 0): of equal
    questions one is asked. heard(done, of): after each batch of a call.
    """

    def __init__(
        self, model: LanguageModel, path: Path, identity: str, heard: Callable[[int, int], None] | None = None
    ) -> None:
        self.model, self.path, self.identity, self.heard = model, Path(path), identity, heard
        self.max_context = getattr(model, "max_context", None)
        self.tokenizer = getattr(model, "tokenizer", None)
        self._known, self._torn = _read(self.path)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """As LanguageModel.generate. Raises UsageError for parameters that draw."""
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if any(one.temperature > 0 for one in each):
            raise UsageError("what is drawn is not remembered", field="temperature", value=each[0].temperature,
                             remedy="temperature 0, or the model itself")  # fmt: skip
        keys = [self._key(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
        left: dict[str, tuple[Prompt, SamplingParams]] = {}
        for key, prompt, one in zip(keys, prompts, each):
            if key not in self._known:
                left.setdefault(key, (prompt, one))
        asked = list(left.items())
        self._tell(len(prompts) - len(asked), len(prompts))
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            said = self.model.generate([prompt for _, (prompt, _) in part], [one for _, (_, one) in part])
            self._keep([key for key, _ in part], said)
            self._tell(len(prompts) - len(asked) + start + len(part), len(prompts))
        return [_completion(self._known[key]) for key in keys]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        return self.model.loglikelihood(pairs)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return self.model.embed(texts)

    def _tell(self, done: int, of: int) -> None:
        if self.heard is not None:
            self.heard(done, of)

    def _key(self, prompt: Prompt, params: SamplingParams) -> str:
        asked = prompt if isinstance(prompt, str) else list(prompt)
        told = json.dumps([self.identity, asked, asdict(params)], sort_keys=True, default=str)
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _keep(self, keys: Sequence[str], said: Sequence[Completion]) -> None:
        lines = []
        for key, one in zip(keys, said, strict=True):
            best = None if one.top_logprobs is None else [list(map(list, place)) for place in one.top_logprobs]
            line = {"asked": key, "text": one.text, "finish_reason": one.finish_reason, "top_logprobs": best}
            self._known[key] = line
            if one.finish_reason in _ANSWERED:
                lines.append(json.dumps(line) + "\n")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(b"\n" * self._torn + "".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self._torn = False


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], bool]:
    """Answers by their question, and whether a killed writer left the last line torn; what is no answer is not one."""
    found: dict[str, dict[str, Any]] = {}
    if not path.exists():
        return found, False
    line = b"\n"
    with open(path, "rb") as file:
        while part := file.readline(_MAX_LINE):
            line = part
            try:
                value = parse_json(line)
            except ValueError:
                continue
            if isinstance(value, dict) and isinstance(value.get("asked"), str) and isinstance(value.get("text"), str):
                found[value["asked"]] = value
    return found, not line.endswith(b"\n")


def _completion(line: dict[str, Any]) -> Completion:
    best = line.get("top_logprobs")
    places = None if best is None else [[(int(token), float(value)) for token, value in place] for place in best]
    return Completion([], text=line["text"], finish_reason=line.get("finish_reason"), top_logprobs=places)
