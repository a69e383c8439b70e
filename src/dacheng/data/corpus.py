"""A tokenized corpus on disk: token shards and a packing index for each split, and a manifest that ties them up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.data.files import read_manifest, sha256_file
from dacheng.data.packing import PackingIndex
from dacheng.data.shards import TokenShards, shard_digest
from dacheng.errors import DachengError, DamagedFile

if TYPE_CHECKING:
    from dacheng.data.batches import PackedSource, TokenBatch

KIND, VERSION = "tokens", 1


@dataclass(frozen=True)
class TokenizedCorpus:
    """What `tokenize` has written. The manifest has, by split, the shards with their hashes, documents, tokens, bytes
    and the packing's statistics; and the tokenizer's and the documents' fingerprints."""

    path: Path
    manifest: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: Path | str) -> TokenizedCorpus:
        """Raises DachengError if there is no tokenized corpus, DamagedFile if its manifest cannot be read."""
        return cls(Path(path), read_manifest(Path(path), KIND, VERSION))

    @property
    def splits(self) -> list[str]:
        return list(self.manifest["splits"])

    @property
    def context_length(self) -> int:
        return int(self.manifest["context_length"])

    def entry(self, split: str) -> dict[str, Any]:
        """The manifest's figures of a split: documents, tokens, bytes, shards, packing."""
        if split not in self.splits:
            raise DachengError(
                "no such split", field="split", value=split, remedy=f"this corpus has {', '.join(self.splits)}"
            )
        return dict(self.manifest["splits"][split])

    def shards(self, split: str = "train") -> TokenShards:
        entries = self.entry(split)["shards"]
        shards = TokenShards.open(
            [self.path / entry["name"] for entry in entries],
            [shard_digest(entry["idx_sha256"], entry["bin_sha256"]) for entry in entries],
        )
        for shard, entry in zip(shards, entries):
            if (len(shard.tokens), len(shard)) != (entry["tokens"], entry["documents"]):
                raise DamagedFile(
                    f"the shard has {len(shard.tokens)} tokens in {len(shard)} documents,"
                    f" its manifest says {entry['tokens']} in {entry['documents']}",
                    field="path",
                    value=str(shard.prefix),
                    remedy="tokenize the documents again",
                )
        return shards

    def packing(self, split: str = "train", shards: TokenShards | None = None) -> PackingIndex:
        """With `shards`, checked against them."""
        self.entry(split)
        return PackingIndex.load(self.path / "packing" / split, shards)

    def verify(self) -> None:
        """Reads every shard and compares its sha256 with the manifest's. Raises DamagedFile. (Opening checks sizes and
        the index only: reading everything would make a large corpus slow to open.)"""
        for split in self.splits:
            for entry in self.entry(split)["shards"]:
                for suffix in ("bin", "idx"):
                    path = self.path / f"{entry['name']}.{suffix}"
                    if not path.is_file() or sha256_file(path) != entry[f"{suffix}_sha256"]:
                        raise DamagedFile(
                            "the token shard is not the one that was written",
                            field="path",
                            value=str(path),
                            remedy="tokenize the documents again",
                        )

    def batches(self, split: str, batch_rows: int) -> Iterator[TokenBatch]:
        """Every row of a split once, in a fixed order: for evaluation."""
        from dacheng.data.batches import every_row

        shards = self.shards(split)
        return every_row(shards, self.packing(split, shards), batch_rows)

    def source(
        self, split: str, batch_rows: int, micro_batches: int = 1, seed: int = 0, rank: int = 0, world: int = 1
    ) -> PackedSource:
        """A PackedSource over a split; see there for the arguments."""
        from dacheng.data.batches import PackedSource

        shards = self.shards(split)
        return PackedSource(shards, self.packing(split, shards), batch_rows, micro_batches, seed, rank, world)
