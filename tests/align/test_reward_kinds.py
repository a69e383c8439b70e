"""A reward model and a judge of a recipe, from directories."""

from __future__ import annotations

import preference_toys as toys
import pytest

from dacheng.align.preferences import RewardTrainConfig, train_reward
from dacheng.align.rewards import RewardMix, Sample, reward_from_config
from dacheng.formats.model_directory import save_model
from dacheng.text.chat import TEMPLATES


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    renderer = toys.renderer()
    path = save_model(
        tmp_path_factory.mktemp("base") / "m", toys.model(renderer.tokenizer.vocab_size), renderer.tokenizer
    )
    (path / "chat_template.jinja").write_text(TEMPLATES["chatml"])
    return path


def test_a_reward_model_of_a_directory(base, tmp_path):
    pairs = toys.comparisons()
    config = RewardTrainConfig(steps=20, rank=0, lr=5e-4, max_tokens=toys.MAX)
    made = train_reward(base, pairs, tmp_path / "out", config, held_out=pairs[:3])
    reward = reward_from_config({"kind": "model", "model": str(made.path), "empty": -9.0})
    said = pairs[0].said
    question = said.prompt[0]["content"]
    samples = [
        Sample("", messages=said.prompt, response=said.chosen[0]["content"]),
        Sample(question, response=said.rejected[0]["content"]),
        Sample(question),
    ]
    good, bad, nothing = (one.total for one in RewardMix([(reward, 1.0)])(samples))
    assert good > bad > nothing == -9.0


def test_a_judge_of_a_directory_says_a_probability_or_nothing(base):
    config = {"kind": "judge", "model": str(base), "yes": "red", "no": "green", "template": "{response}?"}
    reward = reward_from_config(config)
    values = RewardMix([(reward, 1.0)])([Sample("what follows red", response="it is green"), Sample("x")])
    assert values[0].total is None or 0 <= values[0].total <= 1
    assert values[1].total == 0.0  # empty: not asked about
