"""Rollouts as a source of batches: a new set every `updates_per_rollout` steps, a minibatch of it a step."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dacheng.align.reinforce import prompts as prompt_file
from dacheng.align.reinforce.critic import policy_of
from dacheng.align.reinforce.experience import make_experience, teaching_first
from dacheng.align.reinforce.journal import Journal, PreparedSet
from dacheng.align.reinforce.prompts import Prompt
from dacheng.align.reinforce.scoring import Reference
from dacheng.align.reinforce.settings import ReinforceConfig
from dacheng.align.reinforce.statistics import call_frequency, describe
from dacheng.align.rewards.base import Judged, Sample
from dacheng.align.rollouts.ask import Ask
from dacheng.align.rollouts.worker import Worker
from dacheng.data.batches import check_fingerprint
from dacheng.data.order import permutation
from dacheng.data.rollouts import Rollout, RolloutBatch
from dacheng.errors import DachengError, UsageError
from dacheng.train import collectives
from dacheng.train.rng import derive_seed

RewardFunction = Callable[[Sequence[Sample]], Sequence[Judged]]
"""A RewardMix, or anything that answers like one."""
_KEPT_SAVES = 3  # checkpoints whose set may still be wanted
_GAIN, _MOST = 0.1, 0.2  # of the adaptive penalty (Ziegler et al. 2019, section 2.2)


class RolloutSource:
    """What a trainer reads while it learns from rewards (see dacheng.data.batches.Source).

    Its place is (set, minibatch), a function of the step. Which prompts a set has, the seeds of its answers and the
    order of its minibatches follow from the seed and the set's number; what was sampled, judged and computed with the
    weights at its beginning is in the journal before it is used. So a run that is killed anywhere and resumed learns
    from the same numbers.

    last_set: nothing is written ahead for sets after it (None: unknown). Raises UsageError on several ranks.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        worker: Worker,
        reward: RewardFunction,
        config: ReinforceConfig,
        folder: Path,
        *,
        pad_id: int,
        reference: Reference | None = None,
        last_set: int | None = None,
    ) -> None:
        if collectives.world_size() > 1:
            raise UsageError("rollouts are made for one trainer", field="nproc", value=collectives.world_size(),
                             remedy="one process; workers: N writes rollouts in N more")  # fmt: skip
        self.prompts, self.worker, self.reward, self.config = list(prompts), worker, reward, config
        self.pad_id, self.reference, self.last_set = pad_id, reference, last_set
        self.journal = Journal(folder)
        told = json.dumps([config.rollout_identity(), prompt_file.fingerprint(self.prompts)], sort_keys=True)
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()
        self.current: PreparedSet | None = None
        self.cursor = 0
        self._resumed: dict[str, Any] = {}
        self._in_flight: int | None = None
        self._saved: list[int] = []

    @property
    def tokens_per_step(self) -> int:
        """At most: every answer at its longest."""
        longest = max(len(prompt.token_ids) for prompt in self.prompts) + self.config.max_tokens
        return longest * max(1, self.config.rollouts // self.config.minibatches)

    # --- what a trainer asks ------------------------------------------------------------------------------------------
    def next(self, step: int, model: Any = None, weights_version: int = 0) -> list[RolloutBatch]:
        """The micro-batches of a step. Raises what the worker and the rewards raise."""
        number, self.cursor = divmod(step, self.config.updates_per_rollout)
        if self.current is None or self.current.number != number:
            self.current = self._open(number, model, weights_version)
        batch, rows = self.current.batch, self.config.micro_rows
        chosen = self._minibatch(len(batch.tokens), number)
        return [batch.rows(chosen[first : first + rows].tolist()) for first in range(0, len(chosen), rows)]

    def state_dict(self) -> dict[str, Any]:
        """Waits for what is being written: its weights would be gone after a resume."""
        self._collect()
        number = -1 if self.current is None else self.current.number
        self._saved = [*self._saved, number][-_KEPT_SAVES:]
        self.journal.thin_out(min(self._saved) - 1)
        return {
            "fingerprint": self.fingerprint,
            "set": number,
            "digest": "" if self.current is None else self.current.digest,
            "state": {} if self.current is None else self.current.state,
            "saved": self._saved,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises DachengError for the state of other prompts or settings."""
        check_fingerprint(state["fingerprint"], self.fingerprint)
        self._resumed, self._saved = dict(state), list(state["saved"])
        self.current = None

    def close(self) -> None:
        self.worker.close()
        self.journal.close()

    # --- a set --------------------------------------------------------------------------------------------------------
    def _open(self, number: int, model: Any, weights_version: int) -> PreparedSet:
        found = self.journal.load(number)
        if found is None and self.cursor:
            raise DachengError(
                f"the rollouts of set {number} are gone, and the weights they were scored with as well",
                field=str(self.journal.path(number)), remedy="start the run in another directory",
            )  # fmt: skip
        if found is not None and self._resumed.get("set") == number and self._resumed["digest"] != found.digest:
            raise DachengError("the rollouts are not those of the checkpoint", field=str(self.journal.path(number)),
                               value=found.digest, remedy="start the run in another directory")  # fmt: skip
        if found is None:
            found = self._prepare(number, model, weights_version)
        if self.config.lag and not self.cursor:
            self._write_ahead(number + 1, model, weights_version)
        return found

    def _write_ahead(self, number: int, model: Any, weights_version: int) -> None:
        """The next set, by the weights as they are now: one set behind when it is learnt from."""
        if number in self.journal.rollouts or (self.last_set is not None and number > self.last_set):
            return
        self.worker.update_weights(policy_of(model), weights_version)
        self.worker.start(self.asks(number))
        self._in_flight = number

    def _collect(self) -> None:
        if self._in_flight is not None:
            number, self._in_flight = self._in_flight, None
            self.journal.write_rollouts(number, self.worker.collect())

    def _prepare(self, number: int, model: Any, weights_version: int) -> PreparedSet:
        """Sampled, judged and scored; each is on the disk before the next begins."""
        began = time.perf_counter()
        self._collect()
        if number not in self.journal.rollouts:
            self.worker.update_weights(policy_of(model), weights_version)
            self.journal.write_rollouts(number, self.worker.generate(self.asks(number)))
        rollouts = self.journal.read_rollouts(number)
        sampled = time.perf_counter()
        self._judge(number, rollouts)
        judged = time.perf_counter()
        kl_coef = self._kl_coef(number)
        batch, figures = make_experience(
            teaching_first(rollouts, self.config.prompts_per_step),
            model,
            self.config,
            pad_id=self.pad_id,
            reference=self.reference,
            kl_coef=kl_coef,
            first=number == 0,
        )
        figures |= describe(rollouts) | {"kl_coef": kl_coef}
        if self.config.tools is not None:
            figures["tools/call_frequency"] = call_frequency(rollouts)
        figures |= {
            "time/generate_s": sampled - began,
            "time/reward_s": judged - sampled,
            "time/score_s": time.perf_counter() - judged,
            "weights_lag": float(weights_version - min(r.weights_version for r in rollouts)),
        }
        state = {"kl_coef": self._adapted(kl_coef, figures)}
        return self.journal.save(PreparedSet(number, batch, figures, state))

    def _judge(self, number: int, rollouts: Sequence[Rollout]) -> None:
        """Fills in reward and parts, from the journal where they are there."""
        if number not in self.journal.rewards:
            judged = self.reward([self.sample(rollout) for rollout in rollouts])
            lines = [{"id": r.id, "reward": j.total, "parts": dict(j.parts)} for r, j in zip(rollouts, judged)]
            self.journal.rewards.append(number, lines)
        for rollout, line in zip(rollouts, self.journal.rewards.read(number)):
            rollout.reward, rollout.parts = line["reward"], line["parts"]

    def _kl_coef(self, number: int) -> float:
        """What the set before has left."""
        if number == 0:
            return self.config.kl_coef
        if self.current is not None and self.current.number == number - 1:
            return self.current.state["kl_coef"]
        if self._resumed.get("set") == number - 1:
            return float(self._resumed["state"]["kl_coef"])
        before = self.journal.load(number - 1)
        if before is None:
            raise DachengError(f"set {number - 1} is gone", field=str(self.journal.path(number - 1)),
                               remedy="start the run in another directory")  # fmt: skip
        return before.state["kl_coef"]

    def _adapted(self, kl_coef: float, figures: dict[str, float]) -> float:
        target = self.config.kl_target
        if target is None:
            return kl_coef
        error = (figures["objective/kl"] - target) / target
        return kl_coef * (1.0 + _GAIN * min(_MOST, max(-_MOST, error)))

    # --- functions of a set's number ----------------------------------------------------------------------------------
    def asks(self, number: int) -> list[Ask]:
        """`group` asks of each of the set's prompts; over an epoch each prompt once."""
        c, total = self.config, len(self.prompts)
        asks, count = [], c.prompts_per_step * c.oversample
        for place in range(number * count, (number + 1) * count):
            epoch, within = divmod(place, total)
            index = int(permutation(total, derive_seed(c.seed, "prompts"), epoch)[within])
            ids = self.prompts[index].token_ids
            for member in range(c.group):
                seed = derive_seed(c.seed, "rollout", place, member)
                asks.append(Ask(f"{place}.{member}", ids, str(place), seed, {"prompt": index}))
        return asks

    def sample(self, rollout: Rollout) -> Sample:
        """What a reward is told of a rollout."""
        prompt = self.prompts[rollout.meta["prompt"]]
        return Sample(
            prompt.text, prompt.messages, rollout.text, {"id": prompt.id, **prompt.meta}, rollout.finish_reason,
            rollout.own_tokens,
        )  # fmt: skip

    def _minibatch(self, rows: int, number: int) -> np.ndarray:
        epoch, part = divmod(self.cursor, self.config.minibatches)
        order = permutation(rows, derive_seed(self.config.seed, "minibatch"), number, epoch)
        return np.sort(np.array_split(order, self.config.minibatches)[part])  # answers to a prompt side by side
