"""Whether the documents answer a question at all, told from what retrieval found: a calibrated logistic score.

A small language model does not learn to abstain (docs/lab-notes); how well the best passage covers a question's rare
words tells far more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dacheng.errors import DamagedFile, UsageError
from dacheng.evaluate.answers import auroc
from dacheng.rag.citations import SIGNATURE
from dacheng.rag.questions.rarity import Rarity, fold, folded_terms, passage_terms
from dacheng.rag.sentences import sentences
from dacheng.text.analyzer import analyze, analyze_query

if TYPE_CHECKING:
    from dacheng.rag.passages import Passage
    from dacheng.rag.retrieve import Hit

Floats = NDArray[np.float64]
FEATURES = (
    "bm25",  # log(1 + the best passage's score)
    "bm25_share",  # that score for each nat of idf in the question
    "margin",  # how far the best stands before the second, as a share
    "share_top",  # of the question's idf, the share in the best passage
    "share_best",  # the same, in whichever of the passages has most
    "missing",  # idf of the rarest term that the best passage lacks, as a share of the largest idf there can be
    "nowhere",  # of the question's idf, the share in terms that no passage has
    "cosine",  # of the dense vectors, the largest; 0 without an encoder
    "cosine_first",  # that of the best passage
    "cosine_margin",  # how far the largest stands above the mean of the others
    "cosine_first_margin",  # how far that of the best passage does
    "share_lead",  # of the question's idf, the share in the best passage's heading and first sentence
)
_FOLDS, _NEWTON_STEPS, _L2 = 5, 25, 1.0
FALSE_PASS = 0.1  # of the calibration's questions without an answer, at most, pass a gate
MIN_EACH = 5  # answerable and unanswerable questions to calibrate on


@dataclass(frozen=True, slots=True)
class Gate:
    """score(question, hits) in [0, 1]; below `threshold` the answer is that the documents do not say.

    auroc and balanced_accuracy: of questions that each fold's fit had not seen; None where nothing was calibrated.
    weights, mean and scale go with FEATURES. sizes: how many (answerable, unanswerable) it was calibrated on.
    """

    weights: tuple[float, ...]
    bias: float
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    threshold: float
    auroc: float | None = None
    balanced_accuracy: float | None = None
    sizes: tuple[int, int] = (0, 0)

    @classmethod
    def uncalibrated(cls) -> Gate:
        """For documents too few to calibrate on: half of the question's idf has to be in the best passage."""
        weights = [0.0] * len(FEATURES)
        weights[FEATURES.index("share_top")] = 8.0
        mean = [0.5 if weight else 0.0 for weight in weights]
        return cls(tuple(weights), 0.0, tuple(mean), (1.0,) * len(FEATURES), 0.5)

    @classmethod
    def fit(cls, features: Sequence[Floats], answerable: Sequence[bool], seed: int = 0, *, forms: int = 1) -> Gate:
        """Logistic regression with L2 by Newton's method (IRLS), each class with the same total weight; the threshold
        has the best balanced accuracy on scores of questions left out of the fit (five folds), of those that let at
        most FALSE_PASS of the unanswerable ones pass.

        features: one row of len(FEATURES) a question. forms: the rows are so many blocks of the same questions in other
        words; all forms of one are left out together. Raises UsageError with fewer than MIN_EACH of either class.
        """
        x, y = np.asarray(features, dtype=np.float64), np.asarray(answerable, dtype=bool)
        if x.shape != (len(y), len(FEATURES)) or min(y.sum(), (~y).sum()) < MIN_EACH:
            raise UsageError(
                "too few questions to calibrate a gate", field="calibration",
                value={"answerable": int(y.sum()), "unanswerable": int((~y).sum())},
                remedy=f"at least {MIN_EACH} of each: give more documents, or use Gate.uncalibrated()",
            )  # fmt: skip
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale < 1e-9] = 1.0  # a feature that never varies (cosine without an encoder) has no say
        z = (x - mean) / scale
        held = np.zeros(len(y))
        fold_of = np.tile(_folds(y[: len(y) // forms], seed), forms)
        for left_out in range(_FOLDS):
            out = fold_of == left_out
            weights, bias = _newton(z[~out], y[~out])
            held[out] = _sigmoid(z[out] @ weights + bias)
        weights, bias = _newton(z, y)
        threshold, accuracy = best_threshold(held, y, FALSE_PASS)
        return cls(tuple(weights.tolist()), float(bias), tuple(mean.tolist()), tuple(scale.tolist()), threshold,
                   auroc(held.tolist(), y.tolist()), accuracy, (int(y.sum()), int((~y).sum())))  # fmt: skip

    def score_features(self, row: Floats) -> float:
        z = (row - np.asarray(self.mean)) / np.asarray(self.scale)
        return float(_sigmoid(np.atleast_1d(z @ np.asarray(self.weights) + self.bias))[0])

    def score(self, question: str, hits: Sequence[Hit], rarity: Rarity) -> float:
        """In [0, 1]; 0 where nothing was found."""
        return self.score_features(gate_features(question, hits, rarity)) if hits else 0.0

    def passes(self, score: float) -> bool:
        return score >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        return {"features": list(FEATURES), **asdict(self)}

    @classmethod
    def from_dict(cls, values: Any) -> Gate:
        """Raises DamagedFile for anything but what to_dict made with the same features."""
        n = len(FEATURES)
        try:
            if tuple(values["features"]) != FEATURES:
                raise ValueError("other features")
            lists = {k: tuple(float(v) for v in values[k]) for k in ("weights", "mean", "scale")}
            single = {k: None if values[k] is None else float(values[k]) for k in ("auroc", "balanced_accuracy")}
            bias, threshold = float(values["bias"]), float(values["threshold"])
            first, second = (int(size) for size in values["sizes"])
            if any(len(v) != n or not all(map(math.isfinite, v)) for v in lists.values()) or min(lists["scale"]) <= 0:
                raise ValueError("its lists do not fit")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedFile("this is no gate", field="gate", value=str(error), remedy="calibrate it again") from error
        return cls(lists["weights"], bias, lists["mean"], lists["scale"], threshold, single["auroc"],
                   single["balanced_accuracy"], (first, second))  # fmt: skip


def gate_features(question: str, hits: Sequence[Hit], rarity: Rarity) -> Floats:
    """(len(FEATURES),) of one question and the passages found for it, best first."""
    if not hits:
        return np.array([0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0], dtype=np.float64)
    terms = folded_terms(analyze_query(question))
    weight = {term: rarity.idf(term) for term in terms}
    total = sum(weight.values()) or 1.0
    held = [passage_terms(hit.passage) for hit in hits]
    shares = [sum(weight[t] for t in terms if t in found) / total for found in held]
    scores = sorted((hit.bm25 or 0.0 for hit in hits), reverse=True)
    top = max(scores[0], 0.0)
    lead = lead_terms(hits[0].passage)
    cosines = [hit.cosine or 0.0 for hit in hits]
    others = sorted(cosines)[:-1] or [0.0]
    return np.array(
        [
            math.log1p(top),
            top / total,
            (top - scores[1]) / top if len(scores) > 1 and top > 0 else 1.0,
            shares[0],
            max(shares),
            max((weight[t] for t in terms if t not in held[0]), default=0.0) / max(rarity.largest_idf, 1e-9),
            sum(weight[t] for t in terms if t not in rarity) / total,
            max(cosines),
            cosines[0],
            max(cosines) - sum(others) / len(others),
            cosines[0] - sum(cosines[1:] or [0.0]) / max(1, len(cosines) - 1),
            sum(weight[t] for t in terms if t in lead) / total,
        ],
        dtype=np.float64,
    )


def lead_terms(passage: Passage) -> frozenset[str]:
    """The distinct folded terms of a passage's heading and of its first sentence that is no signature."""
    said = (s.text for s in sentences(passage.text) if not s.is_example and not SIGNATURE.match(s.text))
    return frozenset(map(fold, analyze(f"{passage.heading}\n{next(said, '')}")))


def best_threshold(scores: Floats, labels: NDArray[np.bool_], most_false: float = 1.0) -> tuple[float, float]:
    """(threshold, balanced accuracy): the mean of both classes' recall is largest when scores >= threshold pass, among
    thresholds that let at most a share `most_false` of the false ones pass. In the middle between two scores, of equal
    ones the widest gap."""
    values = np.unique(scores)
    middles = np.concatenate([[values[0] - 1e-6], (values[1:] + values[:-1]) / 2, [values[-1] + 1e-6]])
    gaps = np.concatenate([[0.0], values[1:] - values[:-1], [0.0]])
    accuracies = [((scores[labels] >= m).mean() + (scores[~labels] < m).mean()) / 2 for m in middles]
    allowed = [i for i, m in enumerate(middles) if (scores[~labels] >= m).mean() <= most_false]  # the last one always
    best = max(allowed, key=lambda i: (round(accuracies[i], 12), gaps[i]))
    return float(middles[best]), float(accuracies[best])


def _newton(z: Floats, y: NDArray[np.bool_]) -> tuple[Floats, float]:
    """Weights and bias of the largest penalised likelihood (Hastie et al., Elements of Statistical Learning, 4.4.1)."""
    design = np.concatenate([z, np.ones((len(z), 1))], axis=1)
    share = np.where(y, len(y) / (2 * max(1, y.sum())), len(y) / (2 * max(1, (~y).sum())))
    penalty = np.full(design.shape[1], _L2)
    penalty[-1] = 1e-6  # the bias is free
    beta = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(design @ beta)
        gradient = design.T @ (share * (p - y)) + penalty * beta
        hessian = (design * (share * p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        beta = beta - step * min(1.0, 4.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-9:
            break
    return beta[:-1], float(beta[-1])


def _folds(y: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """A fold for each question, each class spread evenly."""
    generator, fold = np.random.default_rng(seed), np.zeros(len(y), dtype=np.int64)
    for label in (True, False):
        members = generator.permutation(np.flatnonzero(y == label))
        fold[members] = np.arange(len(members)) % _FOLDS
    return fold


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))
