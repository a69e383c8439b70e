"""A model behind a URL as a LanguageModel: any server with OpenAI's chat API."""

from __future__ import annotations

from collections.abc import Sequence

from dacheng.errors import DachengError, UsageError
from dacheng.protocols import Completion, SamplingParams
from dacheng.serve.client import Client


class RemoteModel:
    """url, key: as of serve.client.Client. Prompts are texts, each sent as a user's message. Raises DachengError when
    the server cannot be reached or serves no model."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._client = Client(url, key)
        listed = self._client.json("GET", "/v1/models").get("data") or []
        if not listed:
            raise DachengError("this server has no model", field="--model", value=url, remedy="load one there")
        self.name = str(listed[0]["id"])

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        return [self._one(prompt, own) for prompt, own in zip(prompts, each, strict=True)]

    def _one(self, prompt: str | Sequence[int], params: SamplingParams) -> Completion:
        if not isinstance(prompt, str):
            raise UsageError("a model behind a URL takes texts", field="prompt", remedy="send the text")
        body = {"model": self.name, "messages": [{"role": "user", "content": prompt}], "max_tokens": params.max_tokens,
                "temperature": params.temperature}  # fmt: skip
        said = self._client.json("POST", "/v1/chat/completions", body)
        try:
            choice = said["choices"][0]
            text, reason = str(choice["message"]["content"] or ""), str(choice.get("finish_reason") or "stop")
        except (KeyError, IndexError, TypeError) as error:
            raise DachengError("the server's answer is no chat completion", field="--model", value=self._client.url,
                               remedy="name a server with OpenAI's API") from error  # fmt: skip
        return Completion(prompt_token_ids=[], text=text, finish_reason=reason)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        raise UsageError("a model behind a URL does not score texts", field="--model", value=self._client.url)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise UsageError("a model behind a URL does not embed texts here", field="--model", value=self._client.url)
