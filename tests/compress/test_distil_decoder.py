"""Decoders distilled: by the teacher at hand, by its stored tokens, on the student's own answers, by written ones."""

from __future__ import annotations

import gzip
import json

import distil_toys as toys
import numpy as np
import pytest
import torch

from dacheng.align.rollouts.ask import Sampling
from dacheng.compress.distil.decoder import DistilDecoderConfig, _on_policy, distil_decoder
from dacheng.compress.distil.on_policy import Exchange, OnPolicySource, exchange_batch
from dacheng.compress.distil.sequence import write_answers
from dacheng.compress.distil.stored import StoredTeacher, WithTeacher, store_top_tokens
from dacheng.compress.distil.student import pick_layers
from dacheng.data.batches import TokenBatch
from dacheng.data.chats import chat_source, read_chats
from dacheng.engine.engine import Engine
from dacheng.errors import DachengError, UsageError
from dacheng.formats.model_directory import load_model, save_model
from dacheng.objectives.base import StepContext
from dacheng.objectives.distil import ATTENTION, SOFT, STATES
from dacheng.objectives.distil_losses import generalized_jsd, soft_targets
from dacheng.objectives.distil_tokens import NEXT, DistilTokens
from dacheng.objectives.distil_weights import DistilWeights
from dacheng.objectives.next_token import NextToken, context_for
from dacheng.protocols import SamplingParams
from dacheng.records import Drops
from dacheng.stages.distil import Config, decoder_settings
from dacheng.text import ChatRenderer
from dacheng.train.callbacks import Callback
from dacheng.train.optimizers import OptimizerConfig

PLAIN = DistilWeights(soft=1.0, hard=0.0, temperature=1.0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return toys.taught(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def chats(tmp_path):
    return str(toys.chats_file(tmp_path))


def config(**changes) -> DistilDecoderConfig:
    common = {
        "layers": 2, "steps": 60, "batch_rows": 2, "context_length": toys.ROW, "weights": PLAIN, "precision": "fp32",
        "optimizer": OptimizerConfig(lr=4e-3, weight_decay=0.0), "max_tokens": 8, "save_every": 500,
    }  # fmt: skip
    return DistilDecoderConfig(**(common | changes))


def rows(teacher, chats) -> list[TokenBatch]:
    source, _ = chat_source([chats], ChatRenderer(load_model(teacher).tokenizer), context_length=toys.ROW, batch_rows=2)
    return [batch for step in range(3) for batch in source.next(step)]


# --- the objective ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_loss_is_that_of_all_logits_at_once_and_so_are_its_gradients(beta):
    master, student = toys.decoder(40, 1).eval().requires_grad_(False), toys.decoder(40, 2, layers=2)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(40, (2, 9), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[:, :3] = -100
    batch = TokenBatch(tokens, targets, torch.arange(9).expand(2, 9))
    weights = DistilWeights(soft=0.7, hard=0.3, temperature=2.0)
    objective = DistilTokens(master, weights, beta, chunk=4)
    terms, metrics = objective(student, batch, StepContext())
    (terms[SOFT].sum * 0.7 + terms[NEXT].sum * 0.3).backward()
    found = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    kept = targets != -100
    mine, theirs = (m.head(m(tokens, batch.positions, context_for(batch)))[kept] for m in (student, master))
    soft = (soft_targets(mine, theirs, 2.0) if beta == 0 else generalized_jsd(mine, theirs, beta, 2.0)).sum()
    hard = torch.nn.functional.cross_entropy(mine, targets[kept], reduction="sum")
    torch.testing.assert_close(terms[SOFT].sum, soft)
    torch.testing.assert_close(terms[NEXT].sum, hard)
    (soft * 0.7 + hard * 0.3).backward()
    for name, p in student.named_parameters():
        torch.testing.assert_close(found[name], p.grad, atol=1e-5, rtol=1e-4)
    plain, _ = NextToken()(student, batch, StepContext())
    torch.testing.assert_close(plain[NEXT].sum, hard)
    assert objective.counts(batch) == {SOFT: 12.0, NEXT: 12.0} and metrics["loss"][1] == 12.0


def test_states_and_attention_of_decoders_within_documents(teacher, chats):
    master = load_model(teacher).model.eval()
    weights = DistilWeights(soft=0, states=1, state_kind="squared", attention=1, attention_kind="relations")
    for batch in rows(teacher, chats):
        terms, _ = DistilTokens(master, weights)(master, batch, StepContext())
        assert terms.keys() == {STATES, ATTENTION} and all(abs(float(t.sum.detach())) < 1e-4 for t in terms.values())
        other, _ = DistilTokens(master, weights)(pick_layers(master, 2), batch, StepContext())
        assert all(float(term.sum.detach()) > 1e-3 for term in other.values())


def test_other_vocabularies_and_a_teacher_that_is_nowhere_are_refused():
    batch = TokenBatch(
        torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64), torch.arange(3)[None]
    )
    with pytest.raises(UsageError, match="41 tokens and the student 40") as error:
        DistilTokens(toys.decoder(41), PLAIN)(toys.decoder(40), batch, StepContext())
    assert error.value.field == "vocab_size"
    with pytest.raises(UsageError, match="neither a teacher"):
        DistilTokens(None, PLAIN)(toys.decoder(40), batch, StepContext())
    with pytest.raises(UsageError, match="beta"):
        DistilTokens(None, PLAIN, beta=1.5)


# --- stored teachers --------------------------------------------------------------------------------------------------
def test_a_teacher_that_is_stored_whole_is_the_teacher_and_a_part_says_less(teacher, chats, tmp_path):
    loaded = load_model(teacher)
    master, batches = loaded.model.eval(), rows(teacher, chats)
    student = pick_layers(master, 2).eval()
    live = [float(DistilTokens(master, PLAIN)(student, b, StepContext())[0][SOFT].sum.detach()) for b in batches]
    for k in (loaded.model.traits.vocab_size, 4):
        report = store_top_tokens(master, batches, tmp_path / f"{k}.safetensors", k=k)
        stored = StoredTeacher(tmp_path / f"{k}.safetensors")
        found = [
            float(DistilTokens(None, PLAIN)(student, stored.of(b), StepContext())[0][SOFT].sum.detach())
            for b in reversed(batches)
        ][::-1]
        assert report["positions"] == sum(float((b.targets != -100).sum()) for b in batches)
        if k > 4:
            assert found == pytest.approx(live, rel=2e-2, abs=2e-2)  # float16
        else:
            assert all(part < whole + 0.02 for part, whole in zip(found, live)) and report["kept"] > 0.8
    with pytest.raises(DachengError, match="has not seen this row"):
        stored.of(TokenBatch(batches[0].tokens + 1, batches[0].targets, batches[0].positions))
    with pytest.raises(UsageError, match="only KL"):
        DistilTokens(None, PLAIN, beta=0.5)(student, stored.of(batches[0]), StepContext())
    with pytest.raises(UsageError, match="as many tokens"):
        store_top_tokens(master, batches, tmp_path / "x", k=0)
    source, _ = chat_source([chats], ChatRenderer(loaded.tokenizer), context_length=toys.ROW, batch_rows=2)
    wrapped = WithTeacher(source, stored)
    assert wrapped.next(0)[0].top_tokens.shape[-1] == 4 and wrapped.tokens_per_step == source.tokens_per_step
    wrapped.load_state_dict(wrapped.state_dict())


# --- whole runs -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes",
    [{}, {"top_k": 8}, {"share": 1.0, "beta": 0.5, "steps": 100}, {"share": 0.5, "beta": 1.0, "steps": 100}],
    ids=["at-hand", "stored", "own", "half"],
)
def test_a_student_comes_near_its_teacher(teacher, chats, tmp_path, changes):
    made = distil_decoder(teacher, [chats], tmp_path / "out", config(**changes))
    assert made.loss_after < 0.35 * made.loss_before and made.parameters < made.teacher_parameters
    student = load_model(made.path)
    assert student.model.traits.layers == 2 and json.loads((tmp_path / "out/result.json").read_text())["steps"]
    assert (made.written > 0) == bool(changes.get("share")) and (made.kept is not None) == ("top_k" in changes)


def test_half_of_the_layers_whatever_the_config_calls_them(teacher, chats, tmp_path):
    """GPT-2's config.json says n_layer, a GGUF file has none."""
    made = distil_decoder(teacher, [chats], tmp_path / "out", config(layers=None, steps=1))
    assert load_model(made.path).model.traits.layers == 2
    assert decoder_settings(Config(teacher=str(teacher), data=(chats,), steps=1)).layers is None


def test_a_student_is_stored_as_its_teacher_was(teacher, chats, tmp_path):
    """In its dtype, and with what it says of generation: a chat model with two ends of a turn keeps both."""
    loaded = load_model(teacher)
    generation = {"eos_token_id": [loaded.tokenizer.eos_id, 3], "temperature": 0.3}
    half = save_model(tmp_path / "half", loaded.model, loaded.tokenizer, dtype="bfloat16", generation=generation)
    made = distil_decoder(half, [chats], tmp_path / "out", config(steps=1))
    student = load_model(made.path)
    assert student.model.embed.weight.dtype == torch.bfloat16 and made.path != half
    assert {key: student.generation[key] for key in generation} == generation


def test_what_the_student_wrote_is_no_target():
    assert config(share=0.5, weights=None).learnt.hard == 0 and config(weights=None).learnt.hard == 0.5
    for changes, field in (({"share": 0.5, "weights": DistilWeights(hard=0.5)}, "weights.hard"),
                           ({"top_k": 4, "beta": 0.5}, "top_k"), ({"top_k": 4, "share": 0.5}, "top_k")):  # fmt: skip
        with pytest.raises(UsageError) as error:
            config(**changes)
        assert error.value.field == field


def test_stored_tokens_of_other_settings_are_not_taken(teacher, chats, tmp_path):
    told = [distil_decoder(teacher, [chats], tmp_path / "out", config(steps=1, top_k=8)).kept]
    told.append(distil_decoder(teacher, [chats], tmp_path / "out", config(steps=1, top_k=8)).kept)
    assert told[0] == told[1]  # the second has read the first one's file
    (tmp_path / "out" / "training").rename(tmp_path / "aside")
    assert distil_decoder(teacher, [chats], tmp_path / "out", config(steps=1, top_k=1)).kept < told[0]
    (tmp_path / "out" / "training").rename(tmp_path / "aside2")
    flat = DistilWeights(soft=1.0, hard=0.0, temperature=4.0)
    assert distil_decoder(teacher, [chats], tmp_path / "out", config(steps=1, top_k=8, weights=flat)).kept < told[0]


def test_every_turn_of_the_assistant_is_an_exchange(teacher):
    words = load_model(teacher).tokenizer
    ids, learnt = np.arange(3, 13, dtype=np.int32), np.array([0, 0, 1, 1, 0, 0, 0, 1, 1, 1], np.bool_)
    source = _on_policy([(ids, learnt)], words, config(share=0.5))
    assert [(e.prompt, e.answer) for e in source.exchanges] == [
        ((3, 4), (5, 6)), (tuple(range(3, 10)), (10, 11, 12)),
    ]  # fmt: skip


class Crash(Exception):
    pass


class CrashAt(Callback):
    def on_step_end(self, trainer, report):
        if report.step == 7:
            raise Crash


def test_a_killed_on_policy_run_goes_on_to_the_same_bytes(teacher, chats, tmp_path):
    own = config(share=0.5, steps=10, save_every=5)
    whole = distil_decoder(teacher, [chats], tmp_path / "whole", own)
    with pytest.raises(Crash):
        distil_decoder(teacher, [chats], tmp_path / "parts", own, [CrashAt()])
    parts = distil_decoder(teacher, [chats], tmp_path / "parts", own)
    assert (whole.path / "model.safetensors").read_bytes() == (parts.path / "model.safetensors").read_bytes()


def test_plain_text_is_learnt_and_asked_nothing(teacher, tmp_path):
    (tmp_path / "a.txt").write_text("what follows red is green " * 30, encoding="utf-8")
    made = distil_decoder(teacher, [str(tmp_path / "a.txt")], tmp_path / "out",
                          config(steps=25, weights=DistilWeights(soft=0.1, hard=1.0)))  # fmt: skip
    assert made.loss_after < 0.5 * made.loss_before  # by the text itself: the teacher has never seen such
    packed = tmp_path / "b.md.gz"
    packed.write_bytes(gzip.compress(b"what follows red is green " * 30))
    assert distil_decoder(teacher, [str(packed)], tmp_path / "gz", config(steps=1)).steps == 1
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        distil_decoder(teacher, [str(tmp_path / "c.txt")], tmp_path / "bad", config(steps=1))
    with pytest.raises(UsageError, match="no questions"):
        distil_decoder(teacher, [str(tmp_path / "a.txt")], tmp_path / "own", config(share=1.0))


def test_a_student_that_reads_text_differently_is_refused(teacher, chats, tmp_path):
    from dacheng.text import train_tokenizer

    words = train_tokenizer(["another text altogether " * 9], vocab_size=load_model(teacher).tokenizer.vocab_size)
    other = save_model(tmp_path / "s", toys.decoder(words.vocab_size), words)
    with pytest.raises(UsageError, match="vocabularies are not the same"):
        distil_decoder(teacher, [chats], tmp_path / "out", config(), student=other)
    same = save_model(tmp_path / "t", toys.decoder(load_model(teacher).model.traits.vocab_size, layers=1),
                      load_model(teacher).tokenizer)  # fmt: skip
    made = distil_decoder(teacher, [chats], tmp_path / "out", config(steps=2), student=same)
    assert load_model(made.path).model.traits.layers == 1


# --- what the student writes ------------------------------------------------------------------------------------------
def test_batches_follow_from_the_step_and_targets_are_the_answers_alone(teacher):
    loaded = load_model(teacher)
    exchanges = [Exchange((1, 2, i), (4, 5)) for i in range(6)]
    sampling = Sampling(max_tokens=5)

    def source(**changes):
        return OnPolicySource(exchanges, loaded.tokenizer, sampling, **({"batch_rows": 4, "share": 1.0} | changes))

    first, second = source().next(3, loaded.model), source().next(3, loaded.model)
    assert torch.equal(first[0].tokens, second[0].tokens)
    assert bool((first[0].targets[:, :2] == -100).all()) and bool((first[0].targets[:, 2] != -100).all())
    fixed = source(share=0.0).next(0)[0]
    assert bool((fixed.targets[:, 2:] == torch.tensor([4, 5])).all())
    seen = [int(row[2]) for step in range(3) for row in source(share=0.0).next(step)[0].tokens]
    assert sorted(seen[:6]) == list(range(6)) and sorted(seen[6:]) == list(range(6))
    again = source()
    again.load_state_dict(source().state_dict())
    with pytest.raises(DachengError):
        source(share=0.5).load_state_dict(again.state_dict())
    for changes, field in (({"share": 1.5}, "share"), ({"batch_rows": 4, "share": 0.5}, "share")):
        with pytest.raises(UsageError) as error:
            OnPolicySource([Exchange((1,))], loaded.tokenizer, sampling, **({"batch_rows": 2} | changes))
        assert error.value.field == field


def test_rows_of_different_lengths_are_padded_without_a_target():
    batch = exchange_batch([([1, 2], [3]), ([4], [5, 6, 7])], 0)
    assert batch.tokens.tolist() == [[1, 2, 0], [4, 5, 6]]
    assert batch.targets.tolist() == [[-100, 3, -100], [5, 6, 7]]


# --- what the teacher writes ------------------------------------------------------------------------------------------
def test_the_teacher_writes_the_data_once_and_a_cut_file_is_mended(teacher, chats, tmp_path):
    loaded = load_model(teacher)
    engine, renderer = Engine(loaded.model.eval(), loaded.tokenizer), ChatRenderer(loaded.tokenizer)
    records = list(read_chats([chats], Drops()))
    params, out, drops = SamplingParams(max_tokens=8, temperature=0), tmp_path / "answers.jsonl", Drops()
    assert write_answers(engine, renderer, records, out, params, drops) == 8
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    answers = [line["messages"][-1]["content"] for line in lines if "messages" in line]
    assert drops.kept == len(answers) >= 7 and "green follows" in answers
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    calls: list[int] = []
    assert write_answers(engine, renderer, records, out, params, Drops(), calls.append) == 8
    assert out.read_bytes() == whole and calls == [8]
    assert write_answers(engine, renderer, records, out, params, Drops(), calls.append) == 8 and calls == [8]
    for other in (b'{"messages": []}\n', b"no answers", whole + b'{"else": 1}\n', b'{"number": "x"}\n' + whole):
        (tmp_path / "other.jsonl").write_bytes(other)
        with pytest.raises(DachengError, match="no answer of a teacher"):
            write_answers(engine, renderer, records, tmp_path / "other.jsonl", params, Drops())
        assert (tmp_path / "other.jsonl").read_bytes() == other  # somebody's data
    short, cut = tmp_path / "short.jsonl", Drops()
    write_answers(engine, renderer, records[:2], short, SamplingParams(max_tokens=1, temperature=0), cut)
    assert cut.dropped["answer_does_not_end"] == 2
    with pytest.raises(DachengError, match="without a question"):
        records[0].messages = [{"role": "assistant", "content": "hm"}]
        write_answers(engine, renderer, records[:1], tmp_path / "x.jsonl", params, Drops())
    with pytest.raises(DachengError, match="without a question"):
        records[0].messages = [{"role": "system", "content": "be kind"}, {"role": "assistant", "content": "hm"}]
        write_answers(engine, renderer, records[:1], tmp_path / "x.jsonl", params, Drops())
