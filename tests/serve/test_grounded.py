"""A model whose answers come from documents, through every chat API."""

from __future__ import annotations

import urllib.request

import anthropic
import openai
import pytest
from serve_fakes import FakeEngine, chat_tokenizer, running, served

from dacheng.errors import DachengError
from dacheng.serve.client import Client

pytest.importorskip("uvicorn")

ANSWER = {
    "text": "It removes a whole tree. [2]", "abstained": False, "nearest": [],
    "prompt_tokens": 40, "completion_tokens": 9,
    "citations": [{"number": 2, "source": "shutil.py", "heading": "rmtree", "first_line": 480}],
}  # fmt: skip
WHOLE = "It removes a whole tree. [2]\n\n[2] shutil.py, line 480: rmtree"
ASKED = {"model": "documents", "messages": [{"role": "user", "content": " What does rmtree do? "}]}


class Documents:
    def __init__(self, answer=ANSWER):
        self.answer, self.asked = answer, []

    def __call__(self, question):
        self.asked.append(question)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def grounded(documents, engine=None):
    model = served(engine or FakeEngine(chat_tokenizer(), "the cat"), ["documents"])
    model.grounding = documents
    return model


def test_all_three_apis_answer_from_the_documents():
    documents, engine = Documents(), FakeEngine(chat_tokenizer(), "the cat")
    with running(grounded(documents, engine)) as url:
        ours = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        chat = ours.chat.completions.create(**ASKED, temperature=0.7)
        assert chat.choices[0].message.content == WHOLE and chat.choices[0].finish_reason == "stop"
        assert chat.usage.prompt_tokens == 40 and chat.usage.completion_tokens == len(chat_tokenizer().encode(WHOLE))
        with ours.chat.completions.create(**ASKED, stream=True) as chunks:
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == WHOLE
        assert ours.responses.create(model="documents", input="What does rmtree do?").output_text == WHOLE
        said = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0).messages.create(**ASKED, max_tokens=512)
        assert said.content[0].text == WHOLE
        assert documents.asked == ["What does rmtree do?"] * 4 and engine.asked == []
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            assert (
                'vllm:request_success_total{finished_reason="stop",model_name="documents"} 4.0'
                in answer.read().decode()
            )


def test_an_answer_is_cut_where_the_client_says():
    with running(grounded(Documents())) as url:
        found = Client(url).json("POST", "/v1/chat/completions", ASKED | {"max_tokens": 3})
        choice = found["choices"][0]
        assert choice["finish_reason"] == "length" and found["usage"]["completion_tokens"] == 3
        assert WHOLE.startswith(choice["message"]["content"]) and choice["message"]["content"] != WHOLE


def test_not_in_the_documents():
    near = [{"source": "os.py", "heading": "removedirs"}]
    with running(grounded(Documents(ANSWER | {"abstained": True, "citations": [], "nearest": near}))) as url:
        found = Client(url).json("POST", "/v1/chat/completions", ASKED)
        assert found["choices"][0]["message"]["content"] == "Not in the documents.\n\nNearest:\n- os.py: removedirs"


def test_what_it_does_not_do_is_refused_by_name():
    documents = Documents()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    cases = {
        "n": {"n": 2}, "tools": {"tools": [tool]}, "response_format": {"response_format": {"type": "json_object"}},
        "stop": {"stop": ["x"]}, "top_k": {"top_k": 4}, "logprobs": {"logprobs": True},
        "messages": {"messages": [{"role": "system", "content": "Be brief."}]},
    }  # fmt: skip
    with running(grounded(documents)) as url:
        for param, more in [*cases.items(), ("messages", {"messages": [{"role": "user", "content": "x" * 2001}]})]:
            with pytest.raises(DachengError, match=r"\(400\)") as caught:
                Client(url).json("POST", "/v1/chat/completions", ASKED | more)
            assert param in str(caught.value), param
        with pytest.raises(DachengError, match="chat/completions"):
            Client(url).json("POST", "/v1/completions", {"model": "documents", "prompt": "The"})
        documents.answer = DachengError("the documents are still being read", remedy="ask again in a moment")
        with pytest.raises(DachengError, match="still being read"):
            Client(url).json("POST", "/v1/chat/completions", ASKED)
        assert documents.asked == ["What does rmtree do?"]
