"""Answers whose prompt is computed once say what plain rows say, and teach what they teach."""

from __future__ import annotations

import pytest
import torch

from dacheng.adapt.attach import add_lora
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.lora_config import LoRAConfig
from dacheng.objectives import shared_prompts
from dacheng.objectives.logps import model_logps
from dacheng.objectives.shared_prompts import answer_logps, plant, worth_planting

TRAITS = {"vocab_size": 40, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_width": 48, "max_positions": 96}


def policy(**traits) -> Decoder:
    return Decoder(DecoderTraits(**TRAITS | traits)).init_weights(torch.Generator().manual_seed(0))


def groups(*sizes: int, prompt: int = 9, longest: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens and targets (B, T) of so many answers to a prompt each, of different lengths, their rows mixed; in the
    second answer of a group a tool has written the second token."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for size in sizes:
        length = prompt + int(torch.randint(3, (), generator=random))
        shared = torch.randint(1, 40, (length,), generator=random)
        for member in range(size):
            answer = torch.randint(1, 40, (1 + (3 * member) % longest,), generator=random)
            own = torch.ones(len(answer), dtype=torch.bool)
            own[1:2] = member != 1
            rows.append((shared, answer, own))
    width = max(len(shared) + len(answer) for shared, answer, _ in rows) - 1
    tokens, targets = torch.zeros(len(rows), width, dtype=torch.int64), torch.full((len(rows), width), -100)
    for place, row in enumerate(torch.randperm(len(rows), generator=random).tolist()):
        shared, answer, own = rows[row]
        ids = torch.cat((shared, answer))
        tokens[place, : len(ids) - 1] = ids[:-1]
        targets[place, len(shared) - 1 : len(ids) - 1] = answer.masked_fill(~own, -100)
    return tokens, targets


def learnt(function, model: Decoder, tokens: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor):
    """Log-probabilities, entropies, and the gradients of a weighted sum of both."""
    model.zero_grad()
    logps, entropies = function(model, tokens, targets, temperature=1.3, entropy=True)
    ((logps + 0.1 * entropies) * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return logps.detach(), entropies.detach(), gradients


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("traits", [{}, {"window": 8, "window_pattern": "SL"}, {"positions": "learned"}])
def test_numbers_and_gradients_are_those_of_plain_rows(traits, adapted, monkeypatch):
    """Within 1e-4 of the largest gradient, 2e-5 nats: float32 sums are taken in another order, and nothing else."""
    monkeypatch.setattr(shared_prompts, "worth_planting", lambda *_: True)
    model = policy(**traits)
    if adapted:
        add_lora(model, LoRAConfig(rank=4), generator=torch.Generator().manual_seed(1))
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(2))
    tokens, targets = groups(4, 1, 3, 2)
    targets[2] = -100  # cut off: it teaches nothing
    weights = torch.randn(targets.shape, generator=torch.Generator().manual_seed(3))
    trees = plant(tokens, targets)
    assert trees is not None and trees.tokens.numel() < 0.8 * tokens.numel()
    calls = []
    model.register_forward_pre_hook(lambda _, inputs: calls.append(tuple(inputs[0].shape)))
    plain = learnt(model_logps, model, tokens, targets, weights)
    shared = learnt(answer_logps, model, tokens, targets, weights)
    assert calls == [tuple(tokens.shape), tuple(trees.tokens.shape)]
    for found, true in zip(shared[:2], plain[:2]):
        assert torch.equal(found == 0, true == 0) and torch.allclose(found, true, atol=2e-5)
    for name, gradient in plain[2].items():
        assert (shared[2][name] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name


def test_prompts_are_shared_where_that_is_worth_it():
    big = Decoder(DecoderTraits(vocab_size=64, width=512, layers=2, heads=8, mlp_width=1536, max_positions=2048))
    assert plant(*groups(1, 1, 1)) is None  # nobody shares
    tokens, targets = groups(8, 8, prompt=200, longest=20)
    trees = plant(tokens, targets)
    assert trees is not None and sum(trees.sizes) == trees.tokens.numel() < tokens.numel() / 5
    assert worth_planting(big, trees, tokens.shape)
    tokens, targets = groups(64, prompt=1, longest=60)
    trees = plant(tokens, targets)
    assert trees is not None and not worth_planting(big, trees, tokens[:, :32].shape)  # all attend to all
    tokens, targets = groups(2, 2, 2, 2)
    trees = plant(tokens, targets)
    assert trees is not None and not worth_planting(policy(), trees, tokens.shape)  # calls cost more than they save


def test_without_a_target_there_is_nothing():
    tokens, targets = groups(3)
    assert plant(tokens, torch.full_like(targets, -100)) is None
    assert not answer_logps(policy(), tokens, torch.full_like(targets, -100)).any()
