"""Supervised fine-tuning on chats, through the one trainer: only the assistant's tokens are learnt, only the adapter
moves and is kept."""

from __future__ import annotations

import json

import pytest
import torch

from dacheng.adapt import LoRAConfig, add_lora, disabled, trainable
from dacheng.data.batches import IGNORED, every_row
from dacheng.data.chats import chat_shards, chat_source
from dacheng.data.packing import pack
from dacheng.engine import Engine
from dacheng.errors import DachengError
from dacheng.formats.safetensors_io import read_tensors
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.packed import Packed, pack_weights, use_exact
from dacheng.objectives.base import StepContext
from dacheng.objectives.next_token import NextToken
from dacheng.ops.qtensor import QTensor
from dacheng.protocols import SamplingParams
from dacheng.records import Drops, Record
from dacheng.text import ChatRenderer, train_tokenizer
from dacheng.train import Callback, OptimizerConfig, Phase, TrainConfig, Trainer

CONTEXT = 96
COLOURS = ("red", "green", "blue", "black", "white", "brown", "pink", "grey")


@pytest.fixture(scope="module")
def renderer() -> ChatRenderer:
    texts = [f"user assistant what follows {a} is {b}" for a in COLOURS for b in COLOURS]
    tokenizer = train_tokenizer(texts, vocab_size=300, special_tokens=["<|im_start|>", "<|im_end|>"])
    return ChatRenderer(tokenizer, "chatml")


def chats():
    """What follows each colour, in a circle."""
    for i, colour in enumerate(COLOURS):
        following = COLOURS[(i + 1) % len(COLOURS)]
        yield [
            {"role": "user", "content": f"what follows {colour}"},
            {"role": "assistant", "content": f"{following} follows"},
        ]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats()))
    return path


def model_of(renderer, seed=0, packed=False):
    traits = DecoderTraits(
        vocab_size=renderer.tokenizer.vocab_size, width=64, layers=2, heads=4, max_positions=CONTEXT, mlp_width=128
    )
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:  # of a frozen head's size depends how sure an answer can be
                parameter.mul_(20 if name == "embed.weight" else 5)
    if packed:
        state = {
            name: QTensor.from_float(tensor, "Q8_0") if tensor.ndim == 2 else tensor
            for name, tensor in model.state_dict().items()
        }
        model.load_state_dict(pack_weights(model, state))
        use_exact(model)
    return model


def trainer_of(file, renderer, out, *, packed=False, steps=60, callbacks=(), config=None, **changes):
    model = model_of(renderer, packed=packed)
    adapter = add_lora(model, config or LoRAConfig(rank=8, alpha=32), generator=torch.Generator().manual_seed(2))
    source, _ = chat_source([file], renderer, context_length=CONTEXT, batch_rows=2, seed=1)
    optimizer = OptimizerConfig(lr=3e-3, weight_decay=0.0)
    settings = {"steps": steps, "precision": "fp32", "optimizer": optimizer, "save_every": 20, "threads": 1}
    return Trainer(model, [Phase(NextToken())], source, callbacks, TrainConfig(**settings | changes), out), adapter


class Crash(Exception):
    pass


class At(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer, report):
        if report.step == self.step:
            raise Crash


def test_targets_are_what_the_assistant_says(file, renderer):
    source, drops = chat_source([file], renderer, context_length=CONTEXT, batch_rows=4)
    assert drops.kept == len(COLOURS) and not drops.dropped
    said = []
    for batch in every_row(source.shards, source.packing, 4):
        for row in range(len(batch.tokens)):
            ids = batch.targets[row]
            said.append(renderer.tokenizer.decode(ids[ids != IGNORED].tolist(), skip_special_tokens=False))
    text = "".join(said)
    for i in range(len(COLOURS)):
        assert f"{COLOURS[i]} follows<|im_end|>" in text
    assert "what" not in text and "user" not in text and text.count("<|im_end|>") == len(COLOURS)


def test_packed_equals_separate(file, renderer):
    """The loss and its gradient of conversations in one row are those of each alone."""
    found = []
    for context in (CONTEXT, 28):
        model = model_of(renderer)
        add_lora(model, LoRAConfig(rank=4), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".b"):
                    parameter.fill_(0.01)
        records = [Record(str(i), messages=chat) for i, chat in enumerate(chats())]
        shards = chat_shards(records, renderer, context_length=context)
        packing = pack(shards, context)
        total = count = 0.0
        for batch in every_row(shards, packing, 2):
            terms, _ = NextToken()(model, batch, StepContext())
            terms["next_token"].sum.backward()
            total, count = (
                total + float(terms["next_token"].sum.detach()),
                count + NextToken().counts(batch)["next_token"],
            )
        found.append((total, count, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}, packing.rows))
    (one, n, grads, rows), (other, m, separate, more) = found
    assert rows < more == len(COLOURS) and n == m and one == pytest.approx(other, rel=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, separate[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("packed", [False, True])
def test_it_learns_the_answers_and_nothing_else_moves(file, renderer, tmp_path, packed):
    trainer, _ = trainer_of(file, renderer, tmp_path / "run", packed=packed, save_every=100)
    model = trainer.model
    before = {name: value.clone() for name, value in model.state_dict().items() if ".adapters." not in name}
    losses = []

    class Seen(Callback):
        def on_step_end(self, trainer, report):
            losses.append(report.loss)

    trainer.callbacks.append(Seen())
    trainer.fit()
    assert losses[0] > 2 and losses[-1] < 0.05
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    model.eval()
    end = renderer.tokenizer.special_tokens["<|im_end|>"]
    engine = Engine(model, renderer.tokenizer)
    prompts = [renderer.render(chat[:1], add_generation_prompt=True).token_ids for chat in chats()]
    answers = engine.generate(prompts, SamplingParams(max_tokens=12, temperature=0, stop_token_ids=(end,)))
    assert [a.text for a in answers] == [chat[1]["content"] for chat in chats()]
    assert {a.finish_reason for a in answers} == {"stop"}  # the end of a turn is learnt as well
    ids = torch.tensor([renderer.render(next(chats())).token_ids])
    questions = torch.tensor(renderer.render(next(chats())).mask) == 0
    positions = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        logits = model.head(model(ids, positions, DenseCausal()))[0, :-1].log_softmax(-1)
    nats = -logits.gather(1, ids[0, 1:, None])[:, 0]
    assert nats[~questions[1:]].max() < 0.5 < 2 < nats[questions[1:]].mean()  # the question's words were no targets
    with disabled(model), torch.no_grad():
        base = model.head(model(ids, positions, DenseCausal()))
    plain = model_of(renderer, packed=packed).eval()
    with torch.no_grad():
        assert torch.equal(base, plain.head(plain(ids, positions, DenseCausal())))


@pytest.mark.parametrize("packed", [False, True])
def test_a_checkpoint_holds_the_adapter_and_no_base(file, renderer, tmp_path, packed):
    trainer, adapter = trainer_of(file, renderer, tmp_path / "run", packed=packed, steps=3, config=LoRAConfig(rank=2))
    result = trainer.fit()
    tensors = read_tensors(result.checkpoint / "model.safetensors")
    assert sum(t.numel() for t in tensors.values() if t.is_floating_point()) == adapter.parameters
    assert all(".adapters." in name for name in tensors)
    optimizer = read_tensors(result.checkpoint / "optimizer.safetensors")
    assert all(".adapters." in name for name in optimizer if name.startswith("phase/"))
    assert trainable(trainer.model).trained == adapter.parameters
    assert any(isinstance(m, Packed) for m in trainer.model.modules()) is packed


@pytest.mark.parametrize("config", [LoRAConfig(rank=4, dropout=0.1), LoRAConfig(rank=4, use_dora=True, targets=("q",))])
def test_a_resume_is_bitwise(file, renderer, tmp_path, config):
    whole, _ = trainer_of(file, renderer, tmp_path / "a", steps=12, save_every=4, config=config)
    whole.fit()
    cut, _ = trainer_of(file, renderer, tmp_path / "b", steps=12, save_every=4, config=config, callbacks=[At(6)])
    with pytest.raises(Crash):
        cut.fit()
    again, _ = trainer_of(file, renderer, tmp_path / "b", steps=12, save_every=4, config=config)
    assert again.fit().resumed_from == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    other, _ = trainer_of(file, renderer, tmp_path / "b", steps=12, save_every=4, config=config)
    with torch.no_grad():
        other.model.embed.weight[0, 0] += 1  # another base under the same adapter
    with pytest.raises(DachengError) as caught:
        other.fit()
    assert caught.value.field == "model.frozen"


def test_another_packed_base_is_refused_too(file, renderer, tmp_path):
    config = LoRAConfig(rank=2)
    trainer_of(file, renderer, tmp_path / "run", packed=True, steps=2, config=config)[0].fit()
    other, _ = trainer_of(file, renderer, tmp_path / "run", packed=True, steps=2, config=config)
    module = next(m for m in other.model.modules() if isinstance(m, Packed))
    module.packed.view(-1)[7] ^= 1
    with pytest.raises(DachengError) as caught:
        other.fit()
    assert caught.value.field == "model.frozen"


def test_conversations_that_teach_nothing_are_counted(renderer):
    good = next(chats())
    drops = Drops()
    records = [
        Record("text", text="no chat"),
        Record("silent", messages=good[:1]),
        Record("long", messages=[good[0], {"role": "assistant", "content": "red " * 200}]),
        Record("strange", messages=[{"role": "assistant"}, {"role": 7, "content": []}]),
        Record("good", messages=good),
    ]
    shards = chat_shards(records, renderer, context_length=CONTEXT, drops=drops)
    assert (shards.documents, drops.kept, sum(drops.dropped.values())) == (1, 1, 4)
    assert {"no_messages", "assistant_says_nothing", "longer_than_context"} < set(drops.dropped)
    with pytest.raises(DachengError, match="no conversation is left"):
        chat_shards(records[:-1], renderer, context_length=CONTEXT)
