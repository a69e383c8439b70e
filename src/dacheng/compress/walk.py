"""Through a model block by block, with the hidden states that reach each: what is done to a block is seen by the next.

GPTQ, SparseGPT and AWQ all work like that (Frantar et al. 2022, section 3.3): a block's inputs come from the blocks
before it as they are now, compressed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dacheng.compress.calibrate import CalibrationBatch, Collector, EverythingSeen, Stats, check_want
from dacheng.errors import DachengError, UsageError
from dacheng.formats.json_files import read_json, write_json
from dacheng.formats.safetensors_io import read_tensors, write_tensors
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.linear import Dense

PROGRESS = "walk.json"
_SHARE = 0.4  # of a block's time: each of computing its inputs and collecting what is wanted of them, about


class Layer:
    """One block, or (the last) what the head reads. `modules`: its Dense maps by their names in the model."""

    def __init__(self, walk: LayerWalk, index: int, module: nn.Module | None, modules: dict[str, nn.Module]) -> None:
        self.walk, self.index, self.module, self.modules = walk, index, module, modules

    def collect(self, want: Iterable[str], modules: dict[str, nn.Module] | None = None) -> Stats:
        """Runs the block once over all batches, outputs thrown away. modules: some of the block's; all by default."""
        with Collector(self.modules if modules is None else modules, check_want(want)) as collector:
            for number, batch in enumerate(self.walk.batches):
                collector.next_batch(batch.counted)
                with suppress(EverythingSeen):
                    self.walk.run(self.index, number)
                self.walk.tell(self.index + (_SHARE if self.index else 0), number)
        return collector.stats()

    def outputs(self) -> Iterator[Tensor]:
        """What the block gives for each batch now, (B, T, D): for methods that compare blocks."""
        for number in range(len(self.walk.batches)):
            yield self.walk.run(self.index, number)

    def inputs(self) -> Iterator[Tensor]:
        for number in range(len(self.walk.batches)):
            yield self.walk.hidden(self.index, number)

    def keep(self, tensors: dict[str, Tensor]) -> None:
        """Stores what was made of this block, so that a stopped call finds it (see LayerWalk.kept); needs a folder."""
        folder = self.walk.folder
        assert folder is not None
        stored = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        write_tensors(folder / f"block-{self.index:04d}.safetensors", stored)


class LayerWalk:
    """`for layer in walk`: collect statistics, change layer.module, and go on; the next layer's inputs are computed
    when the loop comes back. The last layer is the head: its `module` is None.

    folder: hidden states lie there, one file a batch, in place of in memory, and the walk goes on where an earlier one
    of the same model, batches and purpose was stopped: what that one kept is in `kept()`, to be applied first. A folder
    of another walk is begun anew. head: False ends after the last block, whose outputs are not computed then.
    progress(blocks done), with fractions. Raises UsageError for a model without blocks or no batches.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        folder: Path | None = None,
        purpose: str = "",
        head: bool = True,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.model: Any = model
        self.batches = [CalibrationBatch.of(batch) for batch in batches]
        if not self.batches or not all(batch.tokens.numel() for batch in self.batches):
            raise UsageError("there is no text to calibrate with", field="batches", value=len(self.batches),
                             remedy="give some rows of tokens")  # fmt: skip
        if not hasattr(model, "advance"):
            raise UsageError("this model has no blocks to go through", field="model", value=type(model).__name__,
                             remedy="a decoder or an encoder")  # fmt: skip
        self.folder, self.first = folder, 0
        self.head, self.progress = head, progress
        self._held: list[Tensor] = []
        if folder is not None:
            self._open(folder, purpose)

    def __len__(self) -> int:
        return len(self.model.blocks) + self.head

    def kept(self) -> list[dict[str, Tensor]]:
        """What earlier attempts kept, block by block, as far as they came. Raises DachengError where a block's file is
        gone: the hidden states behind it are those of what it held."""
        if self.folder is None:
            return []
        files = [self.folder / f"block-{i:04d}.safetensors" for i in range(self.first)]
        for file in files:
            if not file.exists():
                raise DachengError("what was made of a block is gone", field="folder", value=str(file),
                                   remedy=f"delete {self.folder} and begin anew")  # fmt: skip
        return [read_tensors(file) for file in files]

    def __iter__(self) -> Iterator[Layer]:
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                if self.first == 0:
                    self._store(0, (self._stream(i).x0 for i in range(len(self.batches))))
                for index in range(self.first, len(self.model.blocks)):
                    block = self.model.blocks[index]
                    prefix = f"blocks.{index}."
                    yield Layer(self, index, block, _dense(block, prefix))
                    if index + 1 < len(self):
                        self._store(index + 1, self._outputs(index))
                if self.head:
                    yield self._head()
        finally:
            self.model.train(training)

    def run(self, index: int, number: int) -> Tensor:
        """Batch `number` through block `index`, from the states that reach it."""
        x = self.hidden(index, number)
        if index == len(self.model.blocks):
            norm = getattr(self.model, "norm", None)
            return x if norm is None else norm(x)
        return self.model.advance(index, x, self._stream(number))

    def hidden(self, index: int, number: int) -> Tensor:
        """(B, T, D), what reaches block `index`."""
        if self.folder is None:
            return self._held[number]
        return read_tensors(self._file(index, number))["x"]

    def tell(self, done: float, number: int) -> None:
        """`done` blocks, and batch `number` of the next step."""
        if self.progress is not None:
            self.progress(done + _SHARE * (number + 1) / len(self.batches))

    # --- inside -------------------------------------------------------------------------------------------------------
    def _outputs(self, index: int) -> Iterator[Tensor]:
        for number in range(len(self.batches)):
            yield self.run(index, number)
            self.tell(index + 1, number)

    def _head(self) -> Layer:
        return _Head(self, len(self.model.blocks), None, {})

    def _stream(self, number: int) -> Any:
        batch = self.batches[number]
        context = DenseCausal() if batch.context is None else batch.context
        return self.model.begin(batch.tokens, batch.positions, context)

    def _store(self, index: int, states: Iterator[Tensor]) -> None:
        if self.folder is None:
            for number, x in enumerate(states):
                if index == 0:
                    self._held.append(x)
                else:
                    self._held[number] = x
            return
        self._states(index).mkdir(exist_ok=True)
        for number, x in enumerate(states):
            write_tensors(self._file(index, number), {"x": x.contiguous()})
        self.first = index
        write_json(self.folder / PROGRESS, {"key": self._key, "layer": index})
        shutil.rmtree(self._states(index - 1), ignore_errors=True)

    def _open(self, folder: Path, purpose: str) -> None:
        self._key = _fingerprint(self.model, self.batches, purpose)
        folder.mkdir(parents=True, exist_ok=True)
        found = read_json(folder / PROGRESS) if (folder / PROGRESS).exists() else {}
        layer = found.get("layer")
        known = found.get("key") == self._key and isinstance(layer, int) and 0 < layer <= len(self.model.blocks)
        if (
            known
            and isinstance(layer, int)
            and all(self._file(layer, number).exists() for number in range(len(self.batches)))
        ):
            self.first = layer
            return
        for old in (*folder.glob("hidden-*"), *folder.glob("block-*.safetensors"), folder / PROGRESS):
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)

    def _states(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"hidden-{index:04d}"

    def _file(self, index: int, number: int) -> Path:
        return self._states(index) / f"batch-{number:05d}.safetensors"


class _Head(Layer):
    """What the head reads: the states after the final norm. A tied head goes by the name of the embedding."""

    def collect(self, want: Iterable[str], modules: dict[str, nn.Module] | None = None) -> Stats:
        model = self.walk.model
        if not hasattr(model, "head"):
            return {}
        name = "embed" if getattr(model, "lm_head", None) is None else "lm_head"
        collector = Collector({}, check_want(want))
        reader = Dense(1, 1, bias=False)
        hook = collector._hook(name)
        for number, batch in enumerate(self.walk.batches):
            collector.next_batch(batch.counted)
            hook(reader, (self.walk.run(self.index, number),))
        return collector.stats()


def _dense(block: nn.Module, prefix: str) -> dict[str, nn.Module]:
    return {prefix + name: module for name, module in block.named_modules() if isinstance(module, Dense)}


def _fingerprint(model: nn.Module, batches: list[CalibrationBatch], purpose: str) -> str:
    digest = hashlib.sha256(purpose.encode())
    for batch in batches:
        digest.update(str(tuple(batch.tokens.shape)).encode() + batch.tokens.cpu().contiguous().numpy().tobytes())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
