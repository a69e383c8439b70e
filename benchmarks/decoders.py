"""Who takes part in benchmarks/decode.py. Each has `vocab_size` and `load_s`; start(batch) makes an empty cache,
prefill(ids) computes a prompt in text 0 and copy_prompt(batch) gives it to the others; step(tokens) takes one token of
each text. Both return the likeliest next tokens. text_logits(ids) are all logits of a text."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

PROMPT, NEW = 512, 16


class Ours:
    """The fused step, or the model itself, over pages of 32 tokens."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from dacheng.formats.model_directory import load_model
        from dacheng.ops import native

        torch.set_num_threads(args.threads)
        native.library()  # compiled once on a machine: not a part of loading
        self.torch, started = torch, time.perf_counter()
        packed = args.kind != "fp32"
        self.model = load_model(args.path, packed=packed, dtype=None, weights_memory=args.memory).model
        if args.kind == "fused":
            from dacheng.models.fused import FusedDecoder

            self.fused = FusedDecoder(self.model)
        else:
            self.fused = None
        self.load_s = time.perf_counter() - started
        self.kv_dtype = torch.bfloat16 if args.kv == "16" and self.fused is not None else torch.float32
        self.vocab_size = self.model.traits.vocab_size

    def weight_bytes(self) -> int:
        """Read for every token: what is multiplied with, a row of the embedding aside."""
        from dacheng.nn.packed import Packed, PackedEmbedding

        tied = self.model.traits.tied_head
        kinds = (Packed, PackedEmbedding) if tied else Packed
        found = [module for module in self.model.modules() if isinstance(module, kinds)]
        return sum(module.shape.numel() // module.format.values * module.format.bytes for module in found)

    def start(self, batch: int) -> None:
        from dacheng.ops.decoder_step import CacheView

        t, torch = self.model.traits, self.torch
        capacity = PROMPT + NEW + 8
        shape = (batch, t.n_kv_heads, capacity, t.head_size)
        keys, values = ([torch.zeros(shape, dtype=self.kv_dtype) for _ in range(t.layers)] for _ in range(2))
        E = t.head_size
        self.cache = CacheView(
            keys, values, torch.arange(batch).unsqueeze(1), capacity, t.n_kv_heads * capacity * E, capacity * E, E
        )
        self.length = 0

    def prefill(self, ids: list[int]) -> int:
        """Into text 0; the first new token."""
        return self._run(ids, [0] * len(ids), range(len(ids)), [len(ids) - 1])[0]

    def copy_prompt(self, batch: int) -> None:
        for stored in (*self.cache.keys, *self.cache.values):
            stored[1:batch] = stored[:1]
        self.length = PROMPT

    def step(self, tokens: list[int]) -> list[int]:
        n = len(tokens)
        found = self._run(tokens, list(range(n)), [self.length] * n, list(range(n)))
        self.length += 1
        return found

    def _run(self, tokens: list[int], texts: list[int], positions: Sequence[int], wanted: list[int]) -> list[int]:
        torch = self.torch
        with torch.inference_mode():
            ids, places = torch.tensor(tokens), torch.tensor(positions)
            if self.fused is not None:
                logits, _ = self.fused.run(ids, places, torch.tensor(texts), self.cache, torch.tensor(wanted))
            else:
                context = _Rows(self.cache, positions[0])
                if positions[0] == 0:  # a prompt, not a token of each text
                    hidden = self.model(ids[None], places[None], context)[0][wanted]
                else:
                    hidden = self.model(ids[:, None], places[:, None], context)[:, 0]
                logits = self.model.head(hidden)
            return logits.argmax(-1).tolist()

    def text_logits(self, ids: list[int]) -> Any:
        from dacheng.nn.contexts import DenseCausal

        with self.torch.inference_mode():
            row = self.torch.tensor([ids])
            return self.model.head(self.model(row, self.torch.arange(len(ids))[None], DenseCausal())[0])


class _Rows:
    """The least context that decodes: texts of one length, each in its row of the cache."""

    def __init__(self, cache: Any, start: int) -> None:
        self.cache, self.start = cache, start

    def attend(self, layer: Any, q: Any, k: Any, v: Any) -> Any:
        from dacheng.nn.contexts import attention

        rows, stop = q.shape[0], self.start + q.shape[2]
        keys, values = self.cache.keys[layer.index][:rows], self.cache.values[layer.index][:rows]
        keys[:, :, self.start : stop], values[:, :, self.start : stop] = k, v
        return attention(q, keys[:, :, :stop], values[:, :, :stop], None, q.shape[2] > 1, layer)


class Llama:
    def __init__(self, args: argparse.Namespace) -> None:
        import llama_cpp
        import numpy

        self.lib, self.numpy = llama_cpp, numpy
        self.args = args
        started = time.perf_counter()
        parameters = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(args.path).encode(), parameters)
        self.load_s = time.perf_counter() - started
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = None

    def start(self, batch: int) -> None:
        lib = self.lib
        if self.context is not None:
            lib.llama_free(self.context)
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = (PROMPT + NEW + 8 + 255) // 256 * 256 * batch  # of all texts together
        parameters.n_batch = parameters.n_ubatch = PROMPT
        parameters.n_seq_max = batch
        parameters.n_threads = parameters.n_threads_batch = self.args.threads
        parameters.type_k = parameters.type_v = 0 if self.args.kv == "32" else 1
        parameters.no_perf = True
        if hasattr(parameters, "kv_unified"):
            parameters.kv_unified = False  # every text has keys of its own, as ours have
        self.context = lib.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise RuntimeError("llama.cpp made no context")
        self.length = 0

    def prefill(self, ids: list[int]) -> int:
        return self._run(ids, [0] * len(ids), list(range(len(ids))), [len(ids) - 1])[0]

    def copy_prompt(self, batch: int) -> None:
        memory = self.lib.llama_get_memory(self.context)
        for text in range(1, batch):
            self.lib.llama_memory_seq_cp(memory, 0, text, -1, -1)
        self.length = PROMPT

    def step(self, tokens: list[int]) -> list[int]:
        n = len(tokens)
        found = self._run(tokens, list(range(n)), [self.length] * n, list(range(n)))
        self.length += 1
        return found

    def _run(self, tokens: list[int], texts: list[int], positions: list[int], wanted: list[int]) -> list[int]:
        return [int(row.argmax()) for row in self._logits(tokens, texts, positions, wanted)]

    def _logits(self, tokens: list[int], texts: list[int], positions: list[int], wanted: list[int]) -> list[Any]:
        lib = self.lib
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        asked = set(wanted)
        for i, (token, text, position) in enumerate(zip(tokens, texts, positions)):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, text
            batch.logits[i] = i in asked
        if lib.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        rows = [
            self.numpy.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, i), (self.vocab_size,)) for i in wanted
        ]
        lib.llama_batch_free(batch)
        return rows

    def text_logits(self, ids: list[int]) -> Any:
        self.start(1)
        everything = list(range(len(ids)))
        return self.numpy.stack(self._logits(ids, [0] * len(ids), everything, everything))


class Transformers:
    def __init__(self, args: argparse.Namespace) -> None:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(args.threads)
        self.torch, started = torch, time.perf_counter()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(str(args.path), dtype=torch.float32).eval()
        self.load_s = time.perf_counter() - started
        self.vocab_size = self.model.config.vocab_size

    def start(self, batch: int) -> None:
        self.past: Any = None

    def prefill(self, ids: list[int]) -> int:
        return self._run(self.torch.tensor([ids]), last=True)[0]

    def copy_prompt(self, batch: int) -> None:
        self.past.batch_repeat_interleave(batch)

    def step(self, tokens: list[int]) -> list[int]:
        return self._run(self.torch.tensor(tokens).unsqueeze(1))

    def _run(self, ids: Any, last: bool = False) -> list[int]:
        with self.torch.inference_mode():
            out = self.model(ids, past_key_values=self.past, use_cache=True, logits_to_keep=1)
            self.past = out.past_key_values
            return out.logits[:, -1].argmax(-1).tolist()

    def text_logits(self, ids: list[int]) -> Any:
        with self.torch.inference_mode():
            return self.model(self.torch.tensor([ids])).logits[0]
