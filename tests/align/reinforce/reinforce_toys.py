"""A model of two layers, a tokenizer of bytes, a dozen prompts and a reward that can be learnt in a few steps."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from dacheng.align.reinforce.prompts import Prompt
from dacheng.align.reinforce.settings import ReinforceConfig
from dacheng.align.rewards.base import FunctionReward, Judged, RewardMix, Sample
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.text import train_tokenizer

LETTERS = "abcdefghijkl"


@cache
def tokenizer():
    """Bytes and the special tokens."""
    return train_tokenizer(["ab"], vocab_size=258, min_frequency=1 << 30)


def model(seed: int = 0, width: int = 32, heads: int = 1) -> Decoder:
    """Written with by compiled steps where there are kernels; with heads of 16 by the model itself."""
    traits = DecoderTraits(
        vocab_size=tokenizer().vocab_size, width=width, layers=2, heads=heads, max_positions=64, mlp_width=64
    )
    return Decoder(traits).init_weights(torch.Generator().manual_seed(seed))


def prompts() -> list[Prompt]:
    return [
        Prompt(letter, tuple(tokenizer().encode(f"{letter}:")), f"{letter}:", None, {"answer": letter})
        for letter in LETTERS
    ]


def vowels(sample: Sample) -> float:
    """The share of the answer's characters that are lower-case letters: a random model writes few."""
    text = sample.response
    return sum("a" <= c <= "z" for c in text) / max(1, len(text))


class CountingMix:
    """A RewardMix that counts how often it is asked, in a file: over all resumes."""

    def __init__(self, calls: Path, reward=vowels) -> None:
        self.mix, self.calls = RewardMix([(FunctionReward("letters", reward), 1.0)]), calls

    def __call__(self, samples: Sequence[Sample]) -> Sequence[Judged]:
        with open(self.calls, "a") as file:
            file.write(f"{len(samples)}\n")
        return self.mix(samples)


def settings(**changes) -> ReinforceConfig:
    values = {
        "method": "grpo", "group": 4, "prompts_per_step": 4, "steps": 6, "max_tokens": 6, "lr": 3e-3, "save_every": 2,
        "seed": 3, "max_batch": 16,
    }  # fmt: skip
    return ReinforceConfig(**{**values, **changes})


class Killer:
    """Ends its process with SIGKILL at the n-th time that `name` happens."""

    def __init__(self, moment: str, at: int) -> None:
        self.moment, self.left = moment, at

    def __call__(self, name: str) -> None:
        if name == self.moment:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def train(out: Path, changes: dict, killer: Killer | None = None) -> None:
    """What a process is given to do: train the toys to the end, going on from what is there. An error is written to
    out/error."""
    from dacheng.align.reinforce import source as source_module
    from dacheng.align.reinforce import training
    from dacheng.align.reinforce.journal import LineJournal
    from dacheng.align.rollouts import inline
    from dacheng.train.trainer import Trainer

    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    if killer is not None:
        _tell(inline.InlineWorker, "generate", killer, "generated")
        _tell(inline.InlineWorker, "update_weights", killer, "synced")
        _tell(CountingMix, "__call__", killer, "rewarded")
        _tell(source_module.RolloutSource, "_judge", killer, "judged")
        _tell(LineJournal, "append", killer, "journalled")
        _tell(Trainer, "_update", killer, "updated")
    try:
        training.train_policy(model(), tokenizer(), prompts(), CountingMix(out / "calls"), out, settings(**changes))
    except BaseException:
        (out / "error").write_text(traceback.format_exc())
        raise


def _tell(owner: type, name: str, killer: Killer, moment: str) -> None:
    """Tells the killer in the middle: after the work, before anyone knows of it."""
    inner = getattr(owner, name)

    def outer(*arguments, **named):
        made = inner(*arguments, **named)
        killer(moment)
        return made

    setattr(owner, name, outer)
