"""Fetching a model's files: resumed after any interruption, checked against the hub's hashes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.hub.http import NETWORK, Interrupted, open_url, patiently
from dacheng.formats.hub.listing import HubFile, Listing, choose, list_files, shards_of
from dacheng.formats.hub.reference import HubReference, endpoint, token
from dacheng.formats.json_files import read_json
from dacheng.formats.shards import INDEX

_BLOCK = 1 << 20
Note = Callable[[str], Any]
Progress = Callable[[int, int], Any]
"""(bytes there, bytes of all files)."""


@dataclass(frozen=True, slots=True)
class Download:
    """Files in `directory`, under their names in the repository."""

    directory: Path
    reference: HubReference
    listing: Listing
    files: list[HubFile]

    def provenance(self) -> dict[str, Any]:
        """For dacheng.json."""
        hashes = {file.path: {file.kind: file.digest, "bytes": file.size} for file in self.files}
        return {
            "kind": "hub", "repository": self.reference.repo, "requested_revision": self.reference.revision,
            "revision": self.listing.commit, "license": self.listing.license, "files": hashes,
        }  # fmt: skip


def download(
    reference: HubReference,
    directory: Path,
    *,
    note: Note = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> Download:
    """Fetches the model into `directory`, which may hold what an earlier, interrupted call left: whole files are kept
    if their hash is right, begun ones go on where they stop. Size and free space are looked at first.

    Raises DachengError when the model is not there, may not be read or does not fit the disk, or the network stays
    away; DamagedFile when what comes is not what the hub says it is.
    """
    where, secret = endpoint(), token()
    listing = list_files(reference, where, secret, note)
    files = choose(listing, reference)
    directory.mkdir(parents=True, exist_ok=True)
    fetch = _Fetch(reference, listing, where, secret, directory, note, progress)
    index = listing.files.get(INDEX)
    if index is not None and index in files:
        fetch.one(index)
        names = read_json(directory / INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise DamagedFile(f"{INDEX} of {reference} names no weights", field="weight_map", value=names,
                              remedy="choose another revision")  # fmt: skip
        files += shards_of(names.values(), listing)
    fetch.all(files)
    return Download(directory, reference, listing, files)


class _Fetch:
    def __init__(
        self, reference: HubReference, listing: Listing, where: str, secret: str | None, directory: Path, note: Note,
        progress: Progress,
    ) -> None:  # fmt: skip
        self._reference, self._listing, self._where, self._secret = reference, listing, where, secret
        self._directory, self._note, self._progress = directory, note, progress
        self._done = self._total = 0

    def all(self, files: list[HubFile]) -> None:
        self._total = sum(file.size for file in files)
        there = sum(self._begun(file) for file in files)
        free = shutil.disk_usage(self._directory).free
        left = ", ".join(f"{count} {ending}" for ending, count in sorted(self._listing.left_aside.items()))
        self._note(
            f"{self._reference}: {len(files)} files, {self._total:,} bytes"
            + (f", {there:,} of them here already" if there else "")
            + (f"; left aside: {left}" if left else "")
        )
        if self._total - there > free:
            raise DachengError(
                f"the files need {self._total - there:,} bytes more and the disk has {free:,}", field="disk",
                value=str(self._directory), remedy="free space, or write to another disk",
            )  # fmt: skip
        for file in files:
            self._progress(self._done, self._total)
            self.one(file)
            self._done += file.size
        self._progress(self._done, self._total)

    def one(self, file: HubFile) -> None:
        """Leaves the whole, checked file at its place."""
        path = self._directory / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size == file.size and _digest(path, file) == file.digest:
            return
        path.unlink(missing_ok=True)
        begun = self._part(file)
        for attempt in range(2):  # a wrong hash after a resumed transfer: once more from the start
            patiently(lambda: self._append(file, begun), f"{file.path}", self._note)
            found = _digest(begun, file)
            if found == file.digest:
                begun.replace(path)
                return
            begun.unlink()
            if attempt == 0:
                self._note(f"{file.path}: the hash is wrong; fetched again from the start")
        raise DamagedFile(
            f"{file.path} of {self._reference} is not what the hub says it is: {file.kind} {found}", field=file.path,
            value=found, remedy=f"expected {file.digest}; check HF_ENDPOINT and the proxy, or choose another revision",
        )  # fmt: skip

    def _part(self, file: HubFile) -> Path:
        """Named after the content: what was begun of another revision is not gone on with."""
        return self._directory / f".{file.digest}.part"

    def _begun(self, file: HubFile) -> int:
        path, part = self._directory / file.path, self._part(file)
        if path.is_file() and path.stat().st_size == file.size:
            return file.size
        return min(part.stat().st_size, file.size) if part.is_file() else 0

    def _append(self, file: HubFile, begun: Path) -> None:
        """Fetches what is missing of a begun file. Raises Interrupted when the connection ends early."""
        start = begun.stat().st_size if begun.exists() else 0
        if start > file.size:
            begun.unlink()
            start = 0
        if start == file.size and begun.exists():
            return
        first = start
        url = self._reference.file_url(self._where, self._listing.commit, file.path)
        try:
            response = open_url(url, self._secret, start)
        except Interrupted as error:
            if "416" in str(error):  # the server has less than we begun: what is here is something else
                begun.unlink(missing_ok=True)
            raise
        with response:
            if start and not _goes_on(response, start):
                start = first = 0  # the server sends all of it
            with open(begun, "r+b" if start else "wb") as target:
                target.seek(start)
                while True:
                    try:
                        block = response.read1(_BLOCK)
                    except NETWORK as error:
                        raise Interrupted(str(error) or type(error).__name__, progress=start > first) from None
                    if not block:
                        break
                    start += len(block)
                    if start > file.size:
                        begun.unlink()
                        raise DamagedFile(f"{file.path} is longer than the hub says", field=file.path, value=start,
                                          remedy=f"expected {file.size} bytes; check HF_ENDPOINT")  # fmt: skip
                    target.write(block)
                    self._progress(self._done + start, max(self._total, start))
        if start < file.size:
            raise Interrupted(f"the connection ended after {start:,} of {file.size:,} bytes", progress=start > first)


def _goes_on(response: Any, start: int) -> bool:
    return response.status == 206 and str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _digest(path: Path, file: HubFile) -> str:
    with open(path, "rb") as opened:
        if file.kind == "sha256":
            return hashlib.file_digest(opened, "sha256").hexdigest()
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)  # git's name for a blob
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
