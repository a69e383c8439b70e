"""A reward model as a directory, and as something that scores conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dacheng.adapt.attach import attach, rows_of
from dacheng.adapt.training import opened
from dacheng.data.chat_layouts import Messages
from dacheng.data.pairs import Row, collate_rows
from dacheng.data.text_rows import length_batches
from dacheng.errors import DachengError
from dacheng.formats.json_files import read_json, write_json
from dacheng.formats.peft import read_adapter
from dacheng.formats.peft.config import CONFIG as ADAPTER_CONFIG
from dacheng.formats.safetensors_io import read_tensors, write_tensors
from dacheng.models.scalar_head import Scorer
from dacheng.objectives.reward_model import last_token_scores

if TYPE_CHECKING:
    from dacheng.text import ChatRenderer

HEAD, ABOUT = "score_head.safetensors", "reward.json"
BATCH_TOKENS = 1024


@dataclass
class RewardModel:
    """A scorer, the renderer of what it reads, and the scale of its scores: `mean` and `std` are those of the replies
    that it learnt from, so that `scores` are about 0 with a spread of about 1 there."""

    scorer: Scorer
    renderer: ChatRenderer
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def load(cls, path: Path | str, base: Path | str | None = None) -> RewardModel:
        """A directory that train_reward left. base: where the adapter's base lies now; None: where it lay. Raises
        DachengError for what is no reward model, and for a base it was not made for."""
        path = Path(path)
        if not (path / ABOUT).is_file():
            raise DachengError(f"{path} holds no reward model", field="reward_model", value=str(path),
                               remedy="dacheng align reward --model … --data … --out …")  # fmt: skip
        about = read_json(path / ABOUT)
        mean, std, named = (about.get(name) for name in ("mean", "std", "base"))
        if not (isinstance(mean, float) and isinstance(std, float) and std > 0 and isinstance(named, str)):
            raise DachengError(f"{path / ABOUT} is damaged", field="std", value=std, remedy="copy the directory again")
        adapted = (path / ADAPTER_CONFIG).is_file()
        found = opened((base or named) if adapted else path, None)
        if adapted:
            adapter = read_adapter(path, found.model)
            rows_of(found.model, make=True).default = attach(found.model, adapter)
        scorer = Scorer(found.model)
        weight = read_tensors(path / HEAD).get("score_weight")
        if weight is None or weight.shape != scorer.score_weight.shape:
            raise DachengError(f"{path / HEAD} does not fit the model", field="score_weight",
                               value=None if weight is None else list(weight.shape),
                               remedy="take the reward model and the base it was made for")  # fmt: skip
        with torch.no_grad():
            scorer.score_weight.copy_(weight)
        return cls(scorer.eval(), found.renderer, mean, std)

    def save_head(self, path: Path, base: str, more: Mapping[str, Any]) -> None:
        """Beside the adapter or the weights, which are written first."""
        write_tensors(path / HEAD, {"score_weight": self.scorer.score_weight.detach()})
        write_json(path / ABOUT, {**more, "base": base, "mean": self.mean, "std": self.std})

    def scores(self, conversations: Sequence[Messages]) -> list[float]:
        """One number for each conversation, which ends with what is judged; higher is better. Raises DachengError for
        one that the template refuses or that is longer than the model reads: nothing is cut."""
        rows = [self._row(messages, number) for number, messages in enumerate(conversations)]
        return ((row_scores(self.scorer, rows, self.renderer.tokenizer.pad_id or 0) - self.mean) / self.std).tolist()

    def _row(self, messages: Messages, number: int) -> Row:
        import numpy as np

        ids = self.renderer.render(messages).token_ids
        most = self.scorer.traits.max_positions
        if len(ids) > most:
            raise DachengError(f"the text has {len(ids)} tokens, the model reads {most}", field=f"messages[{number}]",
                               value=len(ids), remedy="judge shorter replies")  # fmt: skip
        return Row(np.array(ids, np.int32), np.ones(len(ids), np.bool_))


@torch.no_grad()
def row_scores(scorer: Scorer, rows: Sequence[Row], pad_id: int = 0) -> Tensor:
    """(N,) float32: the score at the last token of each row, as the head gives it."""
    found = torch.zeros(len(rows))
    for numbers in length_batches([len(row.ids) for row in rows], BATCH_TOKENS):
        tokens, _, lengths = collate_rows([rows[i] for i in numbers], pad_id)
        found[numbers] = last_token_scores(scorer, tokens, lengths)
    return found
