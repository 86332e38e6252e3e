"""What search by meaning needs of the outside, and how its ranking and that of full-text search become one.

The store knows no vectors: whoever makes it hands in a `SemanticIndex` (modules/storage/semantic.py has ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from typing_extensions import Protocol

from modules.conversation_store.records import SearchHit

__all__ = [
    "AFTER",
    "BEFORE",
    "MEANING_WEIGHT",
    "MODES",
    "Nearest",
    "Place",
    "SearchHits",
    "SemanticIndex",
    "fuse",
]

#: How `search` may look for messages.
MODES = ("text", "semantic", "hybrid")

#: A message: (conversation_id, sequence).
Place = Tuple[str, int]

# A message of a conversation is half understood from those around it: its score gets a share of the scores of the two
# before it (the nearer one first) and of the two after it. Chosen on three of the six conversations of LoCoMo, checked on
# the other three (docs/semantic-search.md; `make bench-memory` does it again).
BEFORE = (0.5, 0.25)
AFTER = (0.4, 0.2)
#: How much the scaled cosine counts beside the scaled full-text score.
MEANING_WEIGHT = 0.8


@dataclass(frozen=True)
class Nearest:
    """The messages nearest in meaning.

    Attributes:
        scores: Cosine similarity by message, best first.
        is_complete: False when messages may be missing: not embedded yet, or missed by an approximate index.
        reason: Why they may.
        is_all: There are no more messages than these that pass the filters.
    """

    scores: Mapping[Place, float]
    is_complete: bool
    reason: str
    is_all: bool


class SemanticIndex(Protocol):
    """Finds messages by meaning."""

    async def nearest(
        self,
        query: str,
        *,
        tenant_id: str,
        limit: int,
        conversation_id: Optional[str] = None,
        roles: Optional[Sequence[str]] = None,
        created_after: Optional[datetime] = None,
        created_before: Optional[datetime] = None,
    ) -> Nearest:
        """Return up to `limit` messages; `roles` and the times restrict as in `ConversationStore.search`."""
        ...


class SearchHits(List[SearchHit]):
    """The hits of a search, best first; a list that says whether it is all there is.

    Attributes:
        complete: False when matches may be missing, for example because messages wait to be embedded.
        reason: Why they may; empty when complete.
    """

    def __init__(self, hits: Iterable[SearchHit] = (), *, complete: bool = True, reason: str = "") -> None:
        super().__init__(hits)
        self.complete = complete
        self.reason = reason


def fuse(
    words: Mapping[Place, float],
    meaning: Mapping[Place, float],
    *,
    meaning_weight: float = MEANING_WEIGHT,
    before: Sequence[float] = BEFORE,
    after: Sequence[float] = AFTER,
) -> List[Tuple[Place, float]]:
    """Return one ranking of two, best first, ties by place.

    Each score becomes the weighted sum over the message and its neighbours (`BEFORE`, `AFTER`; a message without a score
    counts 0, which for the cosine is the lowest one found), each kind is scaled to at most 1, and the two are added.

    Args:
        words: Full-text scores, above 0.
        meaning: Cosines.
        meaning_weight: What the second kind is multiplied by.
        before: Shares of the scores of the messages before it, the nearest first.
        after: The same of those after it.
    """
    floor = min(meaning.values(), default=0.0)
    first = _with_neighbours(words, 0.0, before, after)
    second = _with_neighbours(meaning, floor, before, after)
    first_scale = 1.0 / (_highest(first) or 1.0)
    second_scale = meaning_weight / (_highest(second) or 1.0)
    nothing: Dict[int, float] = {}
    totals: List[Tuple[float, Place]] = []
    for conversation_id in {**first, **second}:
        by_words = first.get(conversation_id, nothing)
        by_meaning = second.get(conversation_id, nothing)
        for sequence in {**by_words, **by_meaning}:
            total = by_words.get(sequence, 0.0) * first_scale + by_meaning.get(sequence, 0.0) * second_scale
            totals.append((-total, (conversation_id, sequence)))
    totals.sort()
    return [(place, -total) for total, place in totals]


def _highest(spread: Mapping[str, Mapping[int, float]]) -> float:
    return max((max(scores.values()) for scores in spread.values()), default=0.0)


def _with_neighbours(
    scores: Mapping[Place, float], floor: float, before: Sequence[float], after: Sequence[float]
) -> Dict[str, Dict[int, float]]:
    """Return by conversation and sequence the scores above `floor`, each with its share for its neighbours."""
    shares = [
        *enumerate(before, 1),  # it stands before the one that gets the share
        *((-distance, share) for distance, share in enumerate(after, 1)),
    ]
    # numbers as keys: pairs would take twice as long, and every score is looked up four times
    grouped: Dict[str, Dict[int, float]] = {}
    for (conversation_id, sequence), score in scores.items():
        grouped.setdefault(conversation_id, {})[sequence] = score - floor
    spread: Dict[str, Dict[int, float]] = {}
    for conversation_id, own in grouped.items():
        totals = spread[conversation_id] = dict(own)
        for sequence, score in own.items():
            for distance, share in shares:
                place = sequence + distance
                totals[place] = totals.get(place, 0.0) + share * score
    return spread
