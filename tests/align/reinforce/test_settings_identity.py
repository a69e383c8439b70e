"""What a life's cache and a journal of rollouts go by."""

from dataclasses import replace

from dacheng.align.reinforce.settings import ReinforceConfig


def test_longer_runs_are_other_weights_from_the_same_rollouts():
    short = ReinforceConfig(steps=10)
    for longer in (replace(short, steps=20), replace(short, minutes=3.0)):
        assert longer.identity() != short.identity()
        assert longer.rollout_identity() == short.rollout_identity()
    assert replace(short, lr=short.lr * 2).rollout_identity() != short.rollout_identity()
    assert replace(short, save_every=7).identity() == short.identity()
