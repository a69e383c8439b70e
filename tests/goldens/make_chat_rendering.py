"""Makes tests/goldens/chat_rendering.json: what transformers makes of the conversations by hand in our templates.

    PYTHONPATH=src:tests/text python tests/goldens/make_chat_rendering.py [OUT]   # made with transformers 5.23.0

For each template and conversation: the text's SHA-256, its ids (as a hash) and the assistant's mask as lengths of runs
(zeros first), by apply_chat_template on the template with {% generation %} put in; null where it raises.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import tempfile
from pathlib import Path

from chat_conversations import BY_HAND
from chat_tagged import chat_tokenizer, tagged
from transformers import PreTrainedTokenizerFast

from dacheng.text.chat import TEMPLATES


def answer(tokenizer: PreTrainedTokenizerFast, name: str, chat: dict) -> dict | None:
    more = {"tools": chat["tools"], "chat_template": tagged(name)}
    try:
        text = tokenizer.apply_chat_template(chat["messages"], tokenize=False, **more)
        found = tokenizer.apply_chat_template(chat["messages"], return_assistant_tokens_mask=True, **more)
    except Exception:
        return None
    return {
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "ids": hashlib.sha256(json.dumps(found["input_ids"]).encode()).hexdigest(),
        "mask": runs(found["assistant_masks"]),
    }


def runs(mask: list[int]) -> list[int]:
    lengths = [len(list(group)) for _, group in itertools.groupby(mask)]
    return [0, *lengths] if mask and mask[0] else lengths


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "chat_rendering.json")
    with tempfile.TemporaryDirectory() as folder:
        chat_tokenizer().save(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    found = {name: {key: answer(tokenizer, name, chat) for key, chat in BY_HAND.items()} for name in TEMPLATES}
    out.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
