"""The hub's client against a hub on this machine: whole, resumed, checked, refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fake_hub import COMMIT, FakeHub
from hypothesis import given
from hypothesis import strategies as st

from dacheng.errors import DachengError, DamagedFile, UsageError
from dacheng.formats.hub import HubReference, download, http
from dacheng.formats.hub.listing import _read

TOKEN = "hf_verysecret"
WEIGHTS = "model.safetensors"


def content(size: int, seed: int = 0) -> bytes:
    block = hashlib.sha512(str(seed).encode()).digest()
    return (block * (size // len(block) + 1))[:size]


FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": content(5000, 1),
    WEIGHTS: content(300_000, 2),
    "LICENSE": b"Apache",
    "README.md": b"# hello",
    "pytorch_model.bin": b"pickle",
    "modeling_tiny.py": b"import os",
    "onnx/model.onnx": b"x",
    "original/consolidated.safetensors": b"y",
    "nested/config.json": b"{}",
}
TAKEN = {"config.json", "tokenizer.json", WEIGHTS, "LICENSE"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def hub(monkeypatch):
    with FakeHub(dict(FILES)).serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + "/")
        yield hub


def fetch(out, text="hf:org/tiny", **more):
    return download(HubReference.parse(text), out, **more)


def test_a_model_is_fetched_and_nothing_else(hub, tmp_path):
    notes: list[str] = []
    steps: list[tuple[int, int]] = []
    found = fetch(tmp_path / "x", note=notes.append, progress=lambda a, b: steps.append((a, b)))
    assert {file.name for file in (tmp_path / "x").iterdir()} == TAKEN
    assert all((tmp_path / "x" / name).read_bytes() == FILES[name] for name in TAKEN)
    total = sum(len(FILES[name]) for name in TAKEN)
    assert steps[-1] == (total, total) and steps == sorted(steps)
    left = "1 .bin, 1 .json, 1 .md, 1 .onnx, 1 .py, 1 .safetensors"
    assert notes == [f"hf:org/tiny@main: 4 files, {total:,} bytes; left aside: {left}"]
    said = found.provenance()
    assert (said["repository"], said["revision"], said["license"]) == ("org/tiny", COMMIT, "apache-2.0")
    assert said["files"][WEIGHTS] == {"sha256": hashlib.sha256(FILES[WEIGHTS]).hexdigest(), "bytes": 300_000}
    assert "git-sha1" in said["files"]["config.json"]


def test_what_is_here_already_is_not_fetched_again(hub, tmp_path):
    fetch(tmp_path)
    hub.seen.clear()
    (tmp_path / "config.json").write_bytes(b'{"model_type": "LLAMA"}')  # same size, other content
    notes: list[str] = []
    fetch(tmp_path, note=notes.append)
    assert [path for path, *_ in hub.seen[1:]] == [f"/org/tiny/resolve/{COMMIT}/config.json"]
    assert "of them here already" in notes[0] and (tmp_path / "config.json").read_bytes() == FILES["config.json"]


def test_cut_transfers_go_on_where_they_stopped(hub, tmp_path):
    hub.cut[WEIGHTS] = [100_000, 50_000, 1]
    fetch(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    ranges = [asked for path, asked, _ in hub.seen if path.endswith(WEIGHTS)]
    assert ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-"]


def test_a_server_without_ranges_sends_it_all_again(hub, tmp_path):
    hub.ranges, hub.cut[WEIGHTS] = False, [100_000]
    fetch(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_a_busy_server_is_asked_again_and_not_for_ever(hub, tmp_path):
    hub.failures.update({"api": 3, WEIGHTS: 2})
    notes: list[str] = []
    fetch(tmp_path / "a", note=notes.append)
    assert sum("HTTP 503; again in 0.0 s" in note for note in notes) == 5
    hub.failures[WEIGHTS] = 100
    with pytest.raises(DachengError, match=r"model\.safetensors: HTTP 503, 6 times") as caught:
        fetch(tmp_path / "b")
    assert "HF_ENDPOINT" in caught.value.remedy
    hub.failures.clear()
    hub.cut[WEIGHTS] = [0] * 9  # no progress at all
    with pytest.raises(DachengError, match="the connection ended after 0 of 300,000 bytes, 6 times"):
        fetch(tmp_path / "b")


def test_a_transfer_that_gets_on_may_be_cut_often(hub, tmp_path):
    hub.cut[WEIGHTS] = [20_000] * 14
    fetch(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_wrong_hash_is_refused_after_a_second_try(hub, tmp_path, name):
    hub.wrong[name] = bytes(len(FILES[name]))
    with pytest.raises(DamagedFile, match="is not what the hub says it is") as caught:
        fetch(tmp_path)
    assert caught.value.field == name and sum(path.endswith(name) for path, *_ in hub.seen) == 2
    assert not (tmp_path / name).exists() and not list(tmp_path.glob(".*.part"))


def test_a_begun_file_that_went_bad_is_fetched_from_the_start(hub, tmp_path):
    digest = hashlib.sha256(FILES[WEIGHTS]).hexdigest()
    (tmp_path / f".{digest}.part").write_bytes(bytes(1000))
    fetch(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / f".{digest}.part").write_bytes(bytes(400_000))  # longer than the file
    fetch(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_more_bytes_than_said_are_refused(hub, tmp_path):
    hub.wrong[WEIGHTS] = FILES[WEIGHTS] + b"more"
    with pytest.raises(DamagedFile, match="longer than the hub says"):
        fetch(tmp_path)


def test_shards_are_those_that_the_index_names(hub, tmp_path):
    del hub.files[WEIGHTS]
    shards = {f"model-0000{i}-of-00002.safetensors": content(3000, i) for i in (1, 2)}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    hub.files |= shards | {"model.safetensors.index.json": json.dumps(index).encode(), "other.safetensors": b"z" * 3000}
    found = fetch(tmp_path)
    assert {file.path for file in found.files} == (TAKEN - {WEIGHTS}) | {*shards, "model.safetensors.index.json"}
    hub.files["model.safetensors.index.json"] = b'{"weight_map": {"a": "../../etc/passwd.safetensors"}}'
    with pytest.raises(DamagedFile, match="names a file that the repository does not have"):
        fetch(tmp_path / "b")


def test_one_gguf_file_or_a_list_to_choose_from(hub, tmp_path):
    del hub.files[WEIGHTS]
    hub.files |= {"tiny-q8_0.gguf": content(3000), "tiny-f16.gguf": content(4000)}
    with pytest.raises(DachengError, match=r"no model\.safetensors") as caught:
        fetch(tmp_path)
    assert "hf:org/tiny@main:tiny-f16.gguf, hf:org/tiny@main:tiny-q8_0.gguf" in caught.value.remedy
    found = fetch(tmp_path, "hf:org/tiny@v1/2:tiny-q8_0.gguf")
    assert {file.path for file in found.files} == {"tiny-q8_0.gguf", "LICENSE"}
    with pytest.raises(DachengError, match="has no such file"):
        fetch(tmp_path, "hf:org/tiny:absent.gguf")


def test_pickles_are_no_weights(hub, tmp_path):
    del hub.files[WEIGHTS]
    with pytest.raises(DachengError) as caught:
        fetch(tmp_path)
    assert "pickled weights are never loaded" in caught.value.remedy


# --- who may read it ------------------------------------------------------------------------------------------------
def test_a_gated_repository_asks_for_a_token_which_is_never_shown(hub, tmp_path, monkeypatch):
    hub.token = TOKEN
    with pytest.raises(DachengError, match="HTTP 401: this repository is gated") as caught:
        fetch(tmp_path)
    assert "set HF_TOKEN" in caught.value.remedy
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(DachengError) as caught:
        fetch(tmp_path)
    assert "may not read it" in caught.value.remedy and "hf_another" not in repr(vars(caught.value)) + str(caught.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    notes: list[str] = []
    hub.failures[WEIGHTS] = 1
    found = fetch(tmp_path, note=notes.append)
    assert all(secret == f"Bearer {TOKEN}" for *_, secret in hub.seen[-4:])
    assert TOKEN not in " ".join(notes) + json.dumps(found.provenance())


def test_the_token_does_not_follow_a_redirect_to_another_server(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with FakeHub(hub.files).serving() as storage:
        hub.elsewhere, storage.failures[WEIGHTS] = storage.endpoint, 100
        with pytest.raises(DachengError) as caught:
            fetch(tmp_path)
        assert "secret" not in str(caught.value)  # nor is the signature of the redirect
        storage.failures.clear()
        fetch(tmp_path)
        assert {secret for *_, secret in storage.seen} == {None} and len(storage.seen) >= 2
    hub.elsewhere = hub.endpoint  # the same server: it keeps the token
    hub.token = TOKEN
    (tmp_path / WEIGHTS).unlink()
    fetch(tmp_path)
    assert hub.seen[-1][0].startswith("/cdn/") and hub.seen[-1][2] == f"Bearer {TOKEN}"


def test_a_redirect_to_a_file_is_not_followed(hub, tmp_path):
    hub.elsewhere = "file:///etc"
    with pytest.raises(DachengError, match="redirects to an address that is not followed"):
        fetch(tmp_path)


@pytest.mark.parametrize("text", ["hf:org/absent", "hf:org/tiny@nowhere"])
def test_what_is_not_there_is_said_so(hub, tmp_path, text):
    with pytest.raises(DachengError, match="HTTP 404") as caught:
        fetch(tmp_path, text)
    assert caught.value.value.startswith(hub.endpoint)


def test_nobody_at_the_endpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DachengError, match="refused, 6 times"):
        fetch(tmp_path)


def test_a_proxy_is_used(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", hub.endpoint)
    monkeypatch.setenv("NO_PROXY", "")
    fetch(tmp_path)
    assert hub.seen  # a proxy is asked for http://hub.invalid/…; the name is never looked up here


@pytest.mark.parametrize(
    ("name", "value"), [("HF_ENDPOINT", "huggingface.co"), ("HF_ENDPOINT", "file:///x"), ("HF_HUB_OFFLINE", "1")]
)
def test_an_endpoint_that_is_none(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        fetch(tmp_path)
    assert caught.value.field == name


def test_a_full_disk_is_seen_before(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(DachengError, match="need 305,029 bytes more and the disk has 1,000"):
        fetch(tmp_path)
    assert [path for path, *_ in hub.seen] == ["/api/models/org/tiny/revision/main"]


# --- answers that make no sense -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path",
    [
        "../x.safetensors",
        "/etc/config.json",
        "a/../config.json",
        "a\\b.gguf",
        "C:x.gguf",
        "",
        "a//b",
        "x\n.gguf",
        7,
        None,
    ],
)
def test_a_path_that_leads_out_is_refused(hub, tmp_path, path):
    def edit(answer):
        answer["siblings"][0]["rfilename"] = path
        return answer

    hub.edit = edit
    with pytest.raises(DamagedFile, match="leads out of the repository"):
        fetch(tmp_path)
    assert not list(tmp_path.parent.glob("x.safetensors"))


@pytest.mark.parametrize("edit", [
    lambda a: [], lambda a: a | {"sha": "main"}, lambda a: a | {"sha": None}, lambda a: a | {"siblings": {}},
    lambda a: a | {"siblings": [{"rfilename": "config.json"}]},
    lambda a: a | {"siblings": [{"rfilename": "config.json", "size": -1, "blobId": "0" * 40}]},
    lambda a: a | {"siblings": [{"rfilename": "config.json", "size": 1, "blobId": "../x"}]},
    lambda a: a | {"siblings": [{"rfilename": WEIGHTS, "size": 1, "lfs": {"sha256": "x", "size": 1}}]},
    lambda a: "hello",
])  # fmt: skip
def test_answers_without_sense_are_refused(hub, tmp_path, edit):
    hub.edit = edit
    with pytest.raises(DamagedFile, match="cannot be read"):
        fetch(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["sha", "siblings", "rfilename", "size", "blobId", "lfs", "sha256", "cardData", "license"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_answer_is_read_or_refused(answer):
    try:
        _read(answer)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass  # list_files turns these into DamagedFile


@pytest.mark.parametrize(("text", "parts"), [
    ("hf:gpt2", ("gpt2", "main", None)),
    ("hf:org/name", ("org/name", "main", None)),
    ("hf:org/na.me@v1.0", ("org/na.me", "v1.0", None)),
    ("hf:org/name@refs/pr/1", ("org/name", "refs/pr/1", None)),
    ("hf:org/name:sub/x.gguf", ("org/name", "main", "sub/x.gguf")),
    ("hf:org/name@abc:x.gguf", ("org/name", "abc", "x.gguf")),
])  # fmt: skip
def test_references(text, parts):
    found = HubReference.parse(text)
    assert (found.repo, found.revision, found.file) == parts
    assert HubReference.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:a/b/c",
        "hf:../x",
        "hf:org/na me",
        "hf:org/..",
        "hf:org/x@",
        "hf:org/x@a..b",
        "hf:org/x:y.bin",
        "hf:org/x@v:../y.gguf",
        "hf:-x/y",
    ],
)
def test_what_names_no_model(text):
    with pytest.raises(UsageError):
        HubReference.parse(text)


@pytest.mark.process
def test_a_killed_download_is_gone_on_with(hub, tmp_path):
    hub.files[WEIGHTS] = content(4_000_000, 9)
    hub.pause_s = 0.05
    code = (
        "import sys; from pathlib import Path; from dacheng.formats.hub import HubReference, download\n"
        "download(HubReference.parse('hf:org/tiny'), Path(sys.argv[1]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | {"HF_ENDPOINT": hub.endpoint}
    )
    part = tmp_path / f".{hashlib.sha256(hub.files[WEIGHTS]).hexdigest()}.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size >= 1_000_000):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    begun = part.stat().st_size
    assert 0 < begun < 4_000_000
    hub.pause_s = 0.0
    hub.seen.clear()
    fetch(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS] and not part.exists()
    asked = [wanted for path, wanted, _ in hub.seen if path.endswith(WEIGHTS)]
    assert asked == [f"bytes={begun}-"]
