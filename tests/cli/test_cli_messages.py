"""What the verbs say of a slip: the help of that very verb, the file that is not there, and no word of going on."""

from __future__ import annotations

import pytest

from dacheng.cli.main import main
from dacheng.cli.summary import _chats


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["align", "score"], "dacheng align score --help\n"),
        (["align", "prefer", "--data", "x"], "dacheng align prefer --help; for example: dacheng align prefer"),
        (["align", "prefr"], "dacheng align --help; for example: dacheng align prefer"),
        (["train"], "dacheng train --help; for example: dacheng train"),
    ],
)
def test_a_wrong_command_is_sent_to_its_own_help(words, remedy, capsys):
    assert main(words) == 2
    assert f"remedy: {remedy}" in capsys.readouterr().err


def test_a_file_that_is_not_there_was_no_beginning(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("do: prefer\nprefer: {data: [nowhere.jsonl], steps: 1, model: nowhere}\n")
    assert main(["train", "recipe.yaml"]) == 2
    said = capsys.readouterr().err
    assert "nowhere is no model" in said and "go on with" not in said
    (tmp_path / "nowhere").write_bytes(b"GGUF")
    assert main(["train", "recipe.yaml"]) == 2
    said = capsys.readouterr().err
    assert "nowhere.jsonl does not exist" in said and f"it is looked for in {tmp_path}" in said
    assert "field:  data" in said and "go on with" not in said


def test_what_is_no_preference_says_how_one_looks(tmp_path, capsys):
    (tmp_path / "asks.jsonl").write_text('{"prompt": "?"}\n')
    assert main(["align", "pairs", str(tmp_path / "asks.jsonl")]) == 1
    said = capsys.readouterr().err
    assert '"chosen"' in said and "python-stdlib" not in said


def test_a_model_with_a_chat_template_is_talked_with(tmp_path):
    assert not _chats(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": null}')
    assert not _chats(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert _chats(tmp_path) and not _chats(tmp_path / "model.gguf")
