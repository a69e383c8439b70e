"""What is said of the rollouts while a run goes on: a line a set, and warnings where nothing is learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dacheng.align.reinforce.source import RolloutSource
from dacheng.train.logs import FileLog

if TYPE_CHECKING:
    from dacheng.train.report import StepReport
    from dacheng.train.trainer import Trainer

SETS = "sets.jsonl"


class RolloutLog(FileLog):
    """out/sets.jsonl: one line a set, with the step that first learnt from it. After any number of resumes it holds the
    sets of the uninterrupted run, each once (times apart).

    Warns, once a reason, after `patience` sets in a row in which every group was worth the same (nothing to learn), no
    answer ended by itself (the end of text is never learnt), every answer was empty, none called a tool, or no reward
    could say anything.
    """

    file_name = SETS

    def __init__(self, source: RolloutSource, patience: int) -> None:
        super().__init__()
        self.source, self.patience = source, patience
        self.in_a_row = dict.fromkeys(REASONS, 0)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        found = self.source.current
        if found is None or self._file is None or self.source.cursor:
            return
        self._file.append({"step": report.step, "set": found.number, **found.figures})
        for reason, (holds, words) in REASONS.items():
            self.in_a_row[reason] = self.in_a_row[reason] + 1 if holds(found.figures) else 0
            if self.in_a_row[reason] == self.patience:
                trainer.warn(words.format(n=self.patience))

    def state_dict(self) -> dict[str, Any]:
        super().state_dict()
        return {"in_a_row": dict(self.in_a_row)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.in_a_row = {reason: int(state["in_a_row"].get(reason, 0)) for reason in REASONS}


REASONS: dict[str, tuple[Any, str]] = {
    "unjudged": (
        lambda f: f.get("frac_unjudged", 0.0) >= 1.0,
        "for {n} sets in a row no reward could say anything about any answer: nothing is learnt; "
        "check what the rewards need in the prompts' meta, and that a judge answers",
    ),
    "equal": (
        lambda f: f.get("frac_reward_zero_std", 0.0) >= 1.0,
        "for {n} sets in a row all answers to a prompt were worth the same: nothing can be learnt; "
        "use easier or harder prompts, a higher temperature, or a reward with more than two values",
    ),
    "endless": (
        lambda f: f["completions/clipped_ratio"] >= 1.0,
        "for {n} sets in a row no answer ended by itself: the model does not write its end of text; "
        "raise max_tokens, or train it on texts that end",
    ),
    "empty": (
        lambda f: f["completions/empty"] >= 1.0,
        "for {n} sets in a row all answers were empty; check the prompts' template and the reward",
    ),
    "uncalled": (
        lambda f: f.get("tools/call_frequency", 1.0) <= 0.0,
        "for {n} sets in a row no answer called a tool: what is never tried is never rewarded; "
        "show a call in the prompts, or train on examples with calls first",
    ),
}
