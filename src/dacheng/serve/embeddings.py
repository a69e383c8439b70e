"""/v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from dacheng.serve.api_error import bad_request
from dacheng.serve.exchange import Exchange
from dacheng.serve.generation import incomplete
from dacheng.serve.openai_completions import read_prompts


async def embeddings(exchange: Exchange) -> Any:
    """One vector of length 1 for each input; encoding_format float or base64 (little-endian float32)."""
    body, model = exchange.body, exchange.find_model()
    inputs = await read_prompts(body, "input", model, exchange.limits.inputs)
    encoding = body.text("encoding_format", "float", choices=("float", "base64"))
    dimensions = body.integer("dimensions", low=1)
    body.text("user", longest=512)
    body.done()
    for i, (ids, _) in enumerate(inputs):
        if len(ids) > model.max_context:
            raise bad_request(f"input[{i}]", f"{len(ids)} tokens do not fit the context of {model.max_context}")
    exchange.meter.begin(sum(len(ids) for ids, _ in inputs))

    async def answer() -> dict[str, Any]:
        try:
            async with asyncio.timeout(exchange.limits.deadline_s):
                more = {"adapter": model.adapter} if model.adapter else {}
                vectors = await model.engine.embed([ids for ids, _ in inputs], **more)
        except TimeoutError:
            raise incomplete("deadline") from None
        if dimensions not in (None, len(vectors[0])):
            raise bad_request("dimensions", f"this model has {len(vectors[0])}, which cannot be cut")
        data = [
            {"object": "embedding", "index": i, "embedding": _encoded(vector, encoding)}
            for i, vector in enumerate(vectors)
        ]
        used = exchange.meter.prompt_tokens
        usage = {"prompt_tokens": used, "total_tokens": used}
        return {"object": "list", "data": data, "model": exchange.model_name, "usage": usage}

    return await exchange.answer(answer())


def _encoded(vector: Any, encoding: str) -> Any:
    import torch

    floats_D = torch.as_tensor(vector, dtype=torch.float32)
    if encoding == "float":
        return floats_D.tolist()
    return base64.b64encode(floats_D.contiguous().numpy().astype("<f4").tobytes()).decode("ascii")
