"""The weights of the hybrid ranking, chosen on all conversations but one and judged on that one, each in its turn.

So every question is answered with weights that never saw its conversation; the mean over all of them is what a new
conversation may expect. The rankings are computed here with NumPy, since the grid is tried some 70,000 times; `check` holds
them to `meaning.fuse`, which the store uses.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Set, Tuple

import numpy as np
from numpy.typing import NDArray

from modules.conversation_store.meaning import AFTER, BEFORE, MEANING_WEIGHT, Place, fuse

__all__ = ["Asked", "CrossValidation", "cross_validate", "grid"]

DEPTH = 10
# Places before and after a conversation that a neighbour's share may fall on.
_PAD = 2
Weights = Dict[str, Any]


def grid() -> Iterator[Weights]:
    """Yield the combinations that are tried."""
    befores = [(), (0.5,), (0.5, 0.25), (0.6, 0.3), (0.7, 0.4)]
    afters = [(), (0.25,), (0.4, 0.2), (0.5, 0.25)]
    for before, after, meaning_weight in itertools.product(befores, afters, (0.4, 0.6, 0.8)):
        yield {"before": before, "after": after, "meaning_weight": meaning_weight}


@dataclass(frozen=True, eq=False)
class Asked:
    """A question with the two rankings that it got.

    Attributes:
        conversation: Its conversation's id.
        evidence: The messages that answer it.
        ids: Of the conversation's messages, in their order.
        words: Full-text scores by place.
        meaning: Cosines by place.
    """

    conversation: str
    evidence: Set[str]
    ids: Sequence[str]
    words: Mapping[Place, float]
    meaning: Mapping[Place, float]

    def share(self, hits: Sequence[str]) -> float:
        """Return the share of the evidence among the first hits."""
        return len(set(hits[:DEPTH]) & self.evidence) / len(self.evidence)


@dataclass(frozen=True)
class CrossValidation:
    """What the leave-one-out run gave: recall at 10 over all questions, and a line for each conversation."""

    recall: float
    lines: List[str]


class _Ranker:
    """The scores of one question as arrays."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._words = self._array(asked.words, 0.0)
        self._meaning = self._array(asked.meaning, min(asked.meaning.values(), default=0.0))
        inside = slice(_PAD, _PAD + len(asked.ids))
        self._found = (self._words != 0)[inside] | self._has(asked.meaning)[inside]

    def _array(self, scores: Mapping[Place, float], floor: float) -> NDArray[np.float64]:
        made = np.zeros(len(self._asked.ids) + 2 * _PAD)
        for (_, sequence), score in scores.items():
            made[sequence - 1 + _PAD] = score - floor
        return made

    def _has(self, scores: Mapping[Place, float]) -> NDArray[np.bool_]:
        made = np.zeros(len(self._asked.ids) + 2 * _PAD, dtype=bool)
        for _, sequence in scores:
            made[sequence - 1 + _PAD] = True
        return made

    def share(self, weights: Weights) -> float:
        first, second = (self._spread(scores, weights) for scores in (self._words, self._meaning))
        totals = first / (first.max() or 1.0) + weights["meaning_weight"] * second / (second.max() or 1.0)
        totals = totals[_PAD : _PAD + len(self._asked.ids)]
        best = np.argsort(-totals, kind="stable")[:DEPTH]
        return self._asked.share([self._asked.ids[place] for place in best])

    @staticmethod
    def _spread(scores: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
        made = scores.copy()
        for distance, share in enumerate(weights["before"], 1):
            made[distance:] += share * scores[:-distance]
        for distance, share in enumerate(weights["after"], 1):
            made[:-distance] += share * scores[distance:]
        return made


def check(asked: Sequence[Asked]) -> None:
    """Fail when the arrays rank otherwise than the store does."""
    weights = {"before": BEFORE, "after": AFTER, "meaning_weight": MEANING_WEIGHT}
    known: List[Tuple[float, float]] = []
    for one in asked[::20]:
        hits = [
            one.ids[sequence - 1]
            for (_, sequence), _ in fuse(one.words, one.meaning, **weights)
            if 0 < sequence <= len(one.ids)
        ]
        known.append((one.share(hits), _Ranker(one).share(weights)))
    ours, arrays = (statistics.fmean(column) for column in zip(*known))
    assert abs(ours - arrays) < 0.005, f"the store's ranking gives {ours:.4f}, the arrays {arrays:.4f}"


def cross_validate(asked: Sequence[Asked]) -> CrossValidation:
    """Choose on the other conversations, judge on the one left out."""
    check(asked)
    combinations = list(grid())
    rankers = [_Ranker(one) for one in asked]
    shares = np.array([[ranker.share(weights) for weights in combinations] for ranker in rankers])
    names = np.array([one.conversation for one in asked])
    judged, lines = np.zeros(len(asked)), []
    for name in sorted(set(names.tolist())):
        left_out = names == name
        chosen = int(np.argmax(shares[~left_out].mean(axis=0)))
        judged[left_out] = shares[left_out, chosen]
        weights = combinations[chosen]
        lines.append(
            f"| {name} | {int(left_out.sum())} | {weights['before']} | {weights['after']} | {weights['meaning_weight']} |"
            f" {shares[~left_out, chosen].mean():.3f} | {judged[left_out].mean():.3f} |"
        )
    return CrossValidation(float(judged.mean()), lines)
