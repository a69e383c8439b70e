"""Train or validation, decided by what a record says: the same side in any order, whatever else is added."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dacheng.data.dedup import content_of
from dacheng.errors import UsageError
from dacheng.records import Record

TRAIN, VALID = "train", "valid"


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """valid_fraction: expected share of records held out, 0 for none. salt: another one gives another split."""

    valid_fraction: float = 0.02
    salt: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.valid_fraction < 1:
            raise UsageError(
                "not a fraction", field="valid_fraction", value=self.valid_fraction, remedy="0 (none) to below 1"
            )


def split_key(record: Record, salt: str = "") -> int:
    """A uniform 64-bit number that depends on the record's content and the salt alone."""
    key = hashlib.blake2b(salt.encode("utf-8"), digest_size=16).digest()
    data = content_of(record).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key).digest(), "big")


def split_of(record: Record, config: SplitConfig) -> str:
    """ "valid" for records whose key is among the lowest `valid_fraction` of all keys, so that a smaller fraction holds
    out a part of what a larger one does."""
    return VALID if split_key(record, config.salt) < config.valid_fraction * 2**64 else TRAIN
