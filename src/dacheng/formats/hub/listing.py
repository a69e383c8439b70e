"""Which files a repository has, and which of them a model needs: never pickles, never code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.hub.http import NETWORK, Interrupted, open_url, patiently
from dacheng.formats.hub.reference import HubReference
from dacheng.formats.json_files import MAX_BYTES, parse_json
from dacheng.formats.shards import INDEX, WEIGHTS

# What import reads, at the top of the repository only. Weights are chosen apart.
ALLOWED = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "*.tiktoken",
    "tekken.json", "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
    "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", INDEX,
)  # fmt: skip
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_MAX_FILES = 100_000


@dataclass(frozen=True, slots=True)
class HubFile:
    """`digest` is the SHA-256 of the content (large files), or git's SHA-1 of the blob (`kind`)."""

    path: str
    size: int
    digest: str
    kind: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit. `left_aside`: what is not fetched, how many files of each ending."""

    commit: str
    files: dict[str, HubFile]
    license: str | None
    left_aside: dict[str, int]


def list_files(
    reference: HubReference, endpoint: str, token: str | None, note: Callable[[str], Any] = lambda text: None
) -> Listing:
    """Asks the hub. Raises DachengError when there is no such model or it may not be read, DamagedFile when the answer
    makes no sense: a path that leads out of the repository, no hash, no size."""
    url = reference.listing_url(endpoint)

    def fetch() -> bytes:
        with open_url(url, token) as response:
            try:
                data = response.read(MAX_BYTES + 1)
            except NETWORK as error:
                raise Interrupted(str(error)) from None
        return data

    data = patiently(fetch, str(reference), note)
    try:
        if len(data) > MAX_BYTES:
            raise ValueError("it is too long")
        return _read(parse_json(data))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedFile(
            f"the hub's answer about {reference} cannot be read: {error}", field="url", value=url,
            remedy="check HF_ENDPOINT: is it a hub?",
        ) from None  # fmt: skip


def _read(answer: dict[str, Any]) -> Listing:
    commit, siblings = answer["sha"], answer["siblings"]
    if not isinstance(commit, str) or not _SHA1.fullmatch(commit):
        raise ValueError("it names no commit")
    if not isinstance(siblings, list) or len(siblings) > _MAX_FILES:
        raise ValueError("it lists no files, or too many")
    files: dict[str, HubFile] = {}
    left: dict[str, int] = {}
    for entry in siblings:
        path = entry["rfilename"]
        if not isinstance(path, str) or not _is_inside(path):
            raise ValueError(f"the path {path!r} leads out of the repository")
        if not _wanted(path):
            ending = "." + path.rsplit(".", 1)[1] if "." in path.rsplit("/", 1)[-1] else "other"
            left[ending] = left.get(ending, 0) + 1
            continue
        large = entry.get("lfs")
        digest, size = (large["sha256"], large["size"]) if large else (entry["blobId"], entry["size"])
        if type(size) is not int or size < 0 or not (_SHA256 if large else _SHA1).fullmatch(digest):
            raise ValueError(f"{path} has no size or hash")
        files[path] = HubFile(path, size, digest, "sha256" if large else "git-sha1")
    card = answer.get("cardData") or {}
    license_ = card.get("license") if isinstance(card, dict) else None
    return Listing(commit, files, license_ if isinstance(license_, str) else None, left)


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and len(path) < 1024
    return plain and "\\" not in path and ":" not in path and path.isprintable()


def _wanted(path: str) -> bool:
    if path.count("/") == 0 and path.endswith((".safetensors", ".gguf")):
        return True
    return path.endswith(".gguf") or any(
        fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in ALLOWED
    )


def choose(listing: Listing, reference: HubReference) -> list[HubFile]:
    """The files to fetch, all but the shards that an index still has to name. Raises DachengError when there is nothing
    to import: no such GGUF file, no safetensors weights."""
    files = listing.files
    licenses = [file for path, file in files.items() if _matches(path, ("LICEN*", "NOTICE*", "USE_POLICY*"))]
    ggufs = sorted(path for path in files if path.endswith(".gguf"))
    if reference.file is not None:
        if reference.file not in files:
            raise DachengError(f"{reference.repo} has no such file", field="source", value=reference.file,
                               remedy=f"it has {', '.join(ggufs) or 'no .gguf files'}")  # fmt: skip
        return [*licenses, files[reference.file]]
    if INDEX not in files and WEIGHTS not in files:
        pickles = sum(
            count for ending, count in listing.left_aside.items() if ending in (".bin", ".pt", ".pth", ".ckpt")
        )
        remedy = "look for a conversion to safetensors or GGUF: pickled weights are never loaded" if pickles else (
            "name a repository that holds a model")  # fmt: skip
        if ggufs:
            remedy = f"choose one of its files: {', '.join(f'{reference}:{path}' for path in ggufs[:6])}"
        raise DachengError(f"{reference.repo} has no {WEIGHTS}", field="source", value=str(reference), remedy=remedy)
    if "config.json" not in files:
        raise DachengError(f"{reference.repo} has no config.json", field="source", value=str(reference),
                           remedy="name a repository that holds a whole model")  # fmt: skip
    weights = [INDEX] if INDEX in files else [WEIGHTS]
    others = [path for path in files if not path.endswith((".gguf", ".safetensors")) and path != INDEX]
    return [files[path] for path in (*others, *weights)]


def shards_of(index: Iterable[str], listing: Listing) -> list[HubFile]:
    """The weight files that an index names. Raises DamagedFile for one that is not there."""
    wanted = sorted(set(index))
    for name in wanted:
        if name not in listing.files or not name.endswith(".safetensors"):
            raise DamagedFile(f"{INDEX} names a file that the repository does not have", field="weight_map", value=name,
                              remedy="tell the model's publisher, or choose another revision")  # fmt: skip
    return [listing.files[name] for name in wanted]


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
