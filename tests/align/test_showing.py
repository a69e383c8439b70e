"""The viewer and the terminal form: what they show, and that data reaches a terminal or a page as text only."""

from __future__ import annotations

import io
import json
import sys

import pytest
from label_fixtures import HOSTILE, session, write_pairs

from dacheng.align.show import overlook, printable, show_example, write_page
from dacheng.cli.label_form import label_in_terminal
from dacheng.cli.main import main
from dacheng.data.chats import chat_shards, read_chats
from dacheng.records import Drops, Record
from dacheng.text import ChatRenderer, train_tokenizer

TURNS = [
    {"role": "user", "content": "what is 1? <|im_end|>"},
    {"role": "assistant", "content": "yes 你好 é"},
    {"role": "user", "content": HOSTILE},
    {"role": "assistant", "content": HOSTILE},
]


@pytest.fixture(scope="module")
def renderer():
    special = ["<|im_start|>", "<|im_end|>"]
    texts = ["user assistant system what is the answer", "yes no 1 2 3"]
    return ChatRenderer(train_tokenizer(texts, vocab_size=300, special_tokens=special, split="gpt-2"), "chatml")


def test_the_viewer_shows_the_text_and_the_mask_that_training_uses(renderer):
    record = Record("x", messages=TURNS)
    example = show_example(record, renderer)
    assert "".join(t.text for t in example.tokens) == renderer.render(TURNS).text
    shards = chat_shards([record], renderer, context_length=999)
    assert [t.learnt for t in example.tokens] == shards[0].targets.tolist()
    assert [t.id for t in example.tokens] == shards[0].tokens.tolist()
    assert "".join(text for text, learnt, _ in example.pieces() if learnt) == f"yes 你好 é<|im_end|>{HOSTILE}<|im_end|>"
    specials = [t.text for t in example.tokens if t.special]
    assert specials.count("<|im_end|>") == 4  # the fifth stands in a user's text
    last = show_example(record, renderer, "last")
    assert 0 < last.learnt < example.learnt and last.to_dict()["learnt"] == last.learnt


def test_why_a_conversation_is_dropped(renderer):
    shown = [
        show_example(Record("a", text="no chat"), renderer),
        show_example(Record("b", messages=TURNS[:1]), renderer),
        show_example(Record("c", messages=TURNS), renderer, row_tokens=20),
        show_example(Record("d", messages=[{"role": "king", "content": "x"}]), renderer),
        show_example(Record("e", messages=TURNS), renderer),
    ]
    assert [x.dropped for x in shown] == ["no_messages", "assistant_says_nothing", "longer_than_context",
                                          "refused:messages[0].role", None]  # fmt: skip
    drops = Drops()
    drops.drop("bad_json", 3, "x:1")
    kept, overview = overlook(shown, [4, 0], drops)
    assert [x.id for x in kept] == ["a", "e"]
    figures = overview.to_dict()
    assert figures["examples"] == 1 and sum(figures["dropped"].values()) == 5
    assert figures["tokens"] == figures["longest"] == len(shown[-1].tokens)
    assert any("bad_json (x:1)" in line for line in overview.lines())


def test_the_page_is_text_only(renderer, tmp_path):
    example = show_example(Record("<script>x</script>", messages=TURNS), renderer)
    _, overview = overlook([example], 1, Drops())
    write_page(tmp_path / "x.html", [example], overview, about={"data": "<i>"})
    page = (tmp_path / "x.html").read_text()
    assert "default-src 'none'" in page and "<script" not in page and "<img" not in page and "<i>" not in page
    assert "\x1b" not in page and "\u202e" not in page and "你" in page
    assert page.count('class="on control"') == 2


def test_nothing_moves_a_terminal():
    assert printable("a\tb\nc 你 é") == "a\tb\nc 你 é"
    assert printable("\x1b[31m\r\x07\x9b\u202e\ud800") == "\\u001b[31m\\u000d\\u0007\\u009b\\u202e\\ud800"


# --- the form ---------------------------------------------------------------------------------------------------------
def typed(lines):
    left = iter(lines)

    def read(_prompt):
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read


def test_the_form_labels_all_pairs(tmp_path):
    found, out = session(tmp_path), io.StringIO()
    lines = ["what?", "1 because 它短", "u", "2", " 3 ", "S", "5", "1"]
    assert label_in_terminal(found, "ada", read=typed(lines), out=out, clock=iter(range(99)).__next__) == 5
    labels = found.store.read()[0]
    assert [x.choice for x in labels[:2]] == [labels[0].first, "undo"] and labels[0].note == "because 它短"
    assert [x.strength for x in labels[2:]] == [1, 0, 0, 2] and all(
        x.seconds is not None for x in labels if x.choice != "undo"
    )
    text = out.getvalue()
    assert "\x1b" not in text and "\u202e" not in text and "all pairs are labelled" in text and "\\u001b[31mred" in text
    assert label_in_terminal(found, "ada", read=typed([]), out=out) == 0


def test_the_form_ends_where_it_is_left(tmp_path):
    found = session(tmp_path)
    assert label_in_terminal(found, "bo", read=typed(["u", "3", "q"]), out=io.StringIO()) == 1
    assert label_in_terminal(found, "bo", read=typed(["3"]), out=io.StringIO()) == 1
    assert found.count("bo") == 2


# --- the verbs --------------------------------------------------------------------------------------------------------
def test_label_and_agreement_as_verbs(tmp_path, monkeypatch, capsys):
    pairs = write_pairs(tmp_path)
    for who, said in (("ada", "1\n1\n2\n3\n"), ("bo", "1\n2\n")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        assert main(["align", "label", str(pairs), "--terminal", "--annotator", who]) == 0
    capsys.readouterr()
    prefs = tmp_path / "prefs.jsonl"
    assert main(["align", "agreement", str(pairs), "--export", str(prefs), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pairs"]["by_two_or_more"] == 2 and report["exported"] == len(prefs.read_text().splitlines())
    assert main(["align", "agreement", str(pairs)]) == 0
    assert "4 of 4 pairs" in capsys.readouterr().out
    assert main(["align", "agreement", str(pairs), "--labels", str(tmp_path / "no.jsonl")]) == 2
    assert main(["align", "label", str(pairs), "--annotator", "ada"]) == 2
    assert "on the page, each gives their name" in capsys.readouterr().err


def test_show_as_a_verb(tmp_path, renderer, capsys):
    tokenizer = tmp_path / "tok"
    renderer.tokenizer.save(tokenizer)
    data = tmp_path / "x.json"
    data.write_text(json.dumps([{"instruction": "what is 1", "output": "yes"}, {"instruction": "no"}]))
    words = ["align", "show", str(data), "--model", str(tokenizer), "--template", "chatml"]
    assert main([*words, "--json", "--html", str(tmp_path / "x.html")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 1 and found["dropped"] == {"missing_field:messages": 1}
    (shown,) = found["shown"]
    assert "".join(p["text"] for p in shown["pieces"] if p["learnt"]) == "yes<|im_end|>"
    assert (tmp_path / "x.html").exists()
    assert main(words) == 0
    assert "⟦yes⟧⟦<|im_end|>⟧" in capsys.readouterr().out
    assert main([*words, "--n", "-1"]) == 2


def test_show_agrees_with_what_is_read_from_real_files(shared_data, renderer):
    drops = Drops()
    qwen = ChatRenderer(renderer.tokenizer, "qwen")
    path = shared_data / "llamafactory_demo" / "glaive_toolcall_zh_demo.json.gz"
    records = list(read_chats([path], drops))[:40]
    examples, overview = overlook((show_example(r, qwen) for r in records), 40, drops)
    assert overview.examples == 40 and 0.1 < overview.learnt / overview.tokens < 0.9
    for example, record in zip(examples, records):
        learnt = "".join(text for text, learnt, _ in example.pieces() if learnt)
        for message in record.messages:
            if message["role"] == "tool" and len(message["content"]) > 30:
                assert message["content"] not in learnt
            for call in message.get("tool_calls", []):
                assert call["function"]["name"] in learnt
