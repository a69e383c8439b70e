"""One GGUF file: what it says of the model, and its tensors, read when they are used."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.gguf.header import Entry, read_header
from dacheng.ops.block_formats import byte_shape
from dacheng.ops.qtensor import QTensor


class GGUFFile:
    """`metadata` maps keys to values (arrays are lists), `tensors` names to format, shape and place.

    Tensors are views of a private mapping of the file: nothing is read before it is used, and writing to a tensor
    copies the page and leaves the file alone. Raises DamagedFile when the header is not sound, and DachengError when
    there is no such file, or a sound one of a kind that is not supported.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except ValueError:
            raise DamagedFile(
                f"{self.path} is empty", field="bytes", value=0, remedy="copy or download the file again"
            ) from None
        except OSError as error:
            raise DachengError(
                f"cannot open {self.path}: {error.strerror}", field="path", value=str(path), remedy="check the path"
            ) from None
        header = read_header(self._bytes, self.path)
        self.version, self.alignment = header.version, header.alignment
        self.metadata: dict[str, Any] = header.metadata
        self.tensors: dict[str, Entry] = header.tensors

    def entry(self, name: str) -> Entry:
        """Raises DachengError for a name that is not there."""
        if name not in self.tensors:
            raise DachengError(
                f"{self.path} has no such tensor", field=name, remedy="it has " + ", ".join(sorted(self.tensors)[:8])
            )
        return self.tensors[name]

    def qtensor(self, name: str) -> QTensor:
        """A tensor of any format in its blocks."""
        entry = self.entry(name)
        data = torch.frombuffer(self._bytes, dtype=torch.uint8, count=entry.size, offset=entry.begin)
        return QTensor(entry.format, entry.shape, data.view(byte_shape(entry.shape, entry.format)))

    def tensor(self, name: str) -> Tensor:
        """A tensor of plain floats in the dtype that it is stored in; blocks dequantised to float32."""
        entry = self.entry(name)
        return self.qtensor(name).dequantize(entry.format.dtype or torch.float32)

    def release(self) -> None:
        """Gives back the memory of what was read so far: it is read again when it is used. Only while nothing has been
        written to a tensor, which would be undone."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._bytes.madvise(mmap.MADV_DONTNEED)

    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(entry.size for entry in self.tensors.values())
