"""Makes tests/goldens/tokenizers: small tokenizers of several families as transformers saves them, and their answers.

    python tests/goldens/make_tokenizer_directories.py [OUT]        # made with transformers 5.23.0, tokenizers 0.23.3

Each case is a directory as `save_pretrained` writes it, with expected.json: the special ids, and for each text its ids
plain (split_special_tokens), with special tokens read, with the family's own tokens around it, and decoded again.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import BertTokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast, T5Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox doesn't.",
    "She sells sea shells by the sea shore, and the shells she sells are sea shells for sure.",
    "def add(left, right):\n    return left + right\n\n\nprint(add(1, 2))\n",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
] * 3
TEXTS = [
    "The fox sells shells.",
    "  two spaces, and a tab\there ",
    "夜来风雨声",
    "naïve café, straße",
    "emoji 👩‍👩‍👧 ok",
    "a line\nanother\n\n",
    "the end</s>, <s> [SEP] [CLS] <|endoftext|> <think>",
    "UNSEEN Ünicode ￼ ＦＵＬＬ",
    "",
]
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def learned(model: models.Model, pre: Any, trainer: trainers.Trainer) -> dict[str, Any]:
    core = Tokenizer(model)
    core.pre_tokenizer = pre
    core.train_from_iterator(CORPUS, trainer)
    return json.loads(core.to_str())["model"]


def byte_level() -> tuple[dict[str, int], list[tuple[str, str]]]:
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    model = learned(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), trainer)
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def gpt2() -> Iterator[Any]:
    vocab, merges = byte_level()
    yield "gpt2", GPT2Tokenizer(vocab={**vocab, "<|endoftext|>": len(vocab)}, merges=merges)
    # as chat models have it: a token that ends a turn, one for padding, and words of the template that are not special
    chat = GPT2Tokenizer(vocab={**vocab, "<|endoftext|>": len(vocab)}, merges=merges)
    chat.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    chat.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    chat.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    chat.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    yield "gpt2_chat", chat


def llama() -> Iterator[Any]:
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *BYTE_TOKENS], limit_alphabet=60, show_progress=False
    )
    model = learned(models.BPE(), pre_tokenizers.Metaspace(), trainer)
    merges = [tuple(pair) for pair in model["merges"]]
    yield "llama", LlamaTokenizer(vocab=model["vocab"], merges=merges)
    yield "llama_no_prefix", LlamaTokenizer(vocab=model["vocab"], merges=merges, add_prefix_space=False)


def t5() -> Iterator[Any]:
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    model = learned(models.Unigram(), pre_tokenizers.Metaspace(), trainer)
    yield "t5", T5Tokenizer(vocab=[(piece, score) for piece, score in model["vocab"]], extra_ids=2)


def bert() -> Iterator[Any]:
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    model = learned(models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(), trainer)
    yield "bert", BertTokenizer(vocab=model["vocab"])


def answers(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    rows = []
    for text in TEXTS:
        special = tokenizer.encode(text, add_special_tokens=False)
        rows.append(
            {
                "text": text,
                "plain": tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True),
                "special": special,
                "around": tokenizer.encode(text, split_special_tokens=True),
                "decoded": tokenizer.decode(special, skip_special_tokens=True),
                "decoded_special": tokenizer.decode(special, skip_special_tokens=False),
            }
        )
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ("eos", "bos", "pad", "unk")}
    return {"size": len(tokenizer), "roles": roles, "all_special_ids": sorted(tokenizer.all_special_ids), "texts": rows}


def main(out: Path) -> None:
    for family in (gpt2, llama, t5, bert):
        for name, tokenizer in family():
            directory = out / name
            shutil.rmtree(directory, ignore_errors=True)
            tokenizer.save_pretrained(directory)
            again = PreTrainedTokenizerFast.from_pretrained(directory)  # what a reader of the directory gets
            text = json.dumps(answers(again), ensure_ascii=False)
            (directory / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "tokenizers")
