"""/tokenize, /detokenize, /tokenizer_info (vLLM's)."""

from __future__ import annotations

from typing import Any

from dacheng.serve.api_error import bad_request
from dacheng.serve.chat import ChatRequest, render
from dacheng.serve.exchange import Exchange
from dacheng.serve.generation import encode_text
from dacheng.serve.messages import read_messages
from dacheng.serve.openai_chat import read_variables
from dacheng.serve.tools import read_tools


async def tokenize(exchange: Exchange) -> Any:
    """Ids of a "prompt", or of "messages" as the chat template renders them."""
    body, model = exchange.body, exchange.find_model(required=False)
    strings = body.flag("return_token_strs")
    prompt = body.text("prompt")
    if prompt is not None:
        special = body.flag("add_special_tokens", True)
        body.done()
        ids = (await encode_text(model, prompt) if prompt else []) if special else model.tokenizer.encode(prompt)
    else:
        template = "" if model.renderer is None else model.renderer.template
        messages = read_messages(body, exchange.limits, knows_developer="developer" in template)
        tools = read_tools(body, exchange.limits)
        begin = body.flag("add_generation_prompt", True)
        variables = body.object("chat_template_kwargs")
        if not begin:
            raise bad_request("add_generation_prompt", "only true")
        body.done()
        known = {} if variables is None else read_variables(variables)
        ids, _ = await render(model, ChatRequest(messages=messages, params={}, tools=tools, variables=known))
    found = {"count": len(ids), "max_model_len": model.max_context, "tokens": ids, "token_strs": None}
    if strings:
        found["token_strs"] = [model.tokenizer.id_to_token(token_id) for token_id in ids]
    return found


async def detokenize(exchange: Exchange) -> Any:
    body, model = exchange.body, exchange.find_model(required=False)
    ids = body.demand("tokens", body.items("tokens", most=1 << 20))
    body.done()
    for i, token_id in enumerate(ids):
        if type(token_id) is not int or not 0 <= token_id < model.tokenizer.vocab_size:
            raise bad_request(f"tokens[{i}]", f"token ids are 0 to {model.tokenizer.vocab_size - 1}")
    return {"prompt": model.tokenizer.decode(ids, skip_special_tokens=False)}


async def tokenizer_info(exchange: Exchange) -> Any:
    """tokenizer_config.json, chat template included, and the special ids."""
    model = exchange.models.served[0]
    tokenizer = model.tokenizer
    return tokenizer.config | {
        "eos_token": tokenizer.id_to_token(tokenizer.eos_id),
        "bos_token": None if tokenizer.bos_id is None else tokenizer.id_to_token(tokenizer.bos_id),
        "vocab_size": tokenizer.vocab_size,
        "eos_token_id": tokenizer.eos_id,
        "bos_token_id": tokenizer.bos_id,
        "pad_token_id": tokenizer.pad_id,
    }
