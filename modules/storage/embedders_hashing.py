"""The built-in embedder: signed feature hashing of words and of pieces of words. It needs nothing and learns nothing.

How good it is: it finds texts that share words, other forms of them, or misspellings. It knows no meaning: "car" and
"automobile" are strangers to it. It is for tests, demonstrations and machines without a model; full-text search alone is
usually better than its vectors alone (docs/semantic-search.md has the figures).
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b
from typing import Dict, FrozenSet, Iterator, List, Sequence, Tuple

import numpy as np

from modules.storage.embedders_base import Matrix
from modules.storage.opening import run_in_thread
from modules.store_common.errors import InvalidValueError

__all__ = ["HashingEmbedder"]

_WORD = re.compile(r"[^\W_]+")
_MAX_WORDS = 2_000
_MAX_WORD_CHARACTERS = 40
_PIECE = 3
# A word counts as much as all its pieces together would for about six letters.
_PIECE_WEIGHT = 0.25
_ENDINGS = ("ings", "ing", "edly", "ed", "ies", "es", "s", "ly")
# The most frequent English words; they only add noise.
_COMMON_WORDS = """
    a an and are as at be but by did do does for from had has have he her his how i if in is it its me my not of on or our
    s she so t that the their them they this to was we were what when where which who will with would you your
"""
_COMMON: FrozenSet[str] = frozenset(_COMMON_WORDS.split())


class HashingEmbedder:
    """Signed feature hashing ("the hashing trick"), deterministic on every machine and Python.

    Each word (cut to its stem) and each piece of three letters of it adds plus or minus its weight at a place that its
    hash decides; the result has length 1.

    Args:
        dimension: Numbers in a vector, 16 to 4,096.

    Source:
        Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.
    """

    name = "hashing"

    def __init__(self, dimension: int = 384) -> None:
        if not 16 <= dimension <= 4096:
            raise InvalidValueError("the dimension of the hashing embedder must be 16 to 4,096")
        self.dimension = dimension

    async def embed(self, texts: Sequence[str]) -> Matrix:
        """Return a vector for each text."""
        if len(texts) == 1:
            return self.vectors(texts)
        matrix: Matrix = await run_in_thread(lambda: self.vectors(texts))
        return matrix

    def vectors(self, texts: Sequence[str]) -> Matrix:
        """Return a vector for each text, at once."""
        matrix: Matrix = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, given in zip(matrix, texts):
            for feature, weight in _features(given):
                place, sign = _place(feature)
                row[place % self.dimension] += sign * weight
            length = float(np.linalg.norm(row))
            if length == 0:
                row[0] = 1.0  # no word at all: every such text in one direction
            else:
                row /= length
        return matrix


def _features(text: str) -> Iterator[Tuple[str, float]]:
    counts: Dict[str, int] = {}
    words: List[str] = _WORD.findall(text.lower())[:_MAX_WORDS]
    for word in words:
        if word not in _COMMON:
            stem = _stem(word[:_MAX_WORD_CHARACTERS])
            counts[stem] = counts.get(stem, 0) + 1
    for stem, count in counts.items():
        # a word said twice counts 1.4 times, not twice
        weight = count**0.5
        yield stem, weight
        framed = f"<{stem}>"
        for start in range(len(framed) - _PIECE + 1):
            yield "#" + framed[start : start + _PIECE], weight * _PIECE_WEIGHT


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)] + ("y" if ending == "ies" else "")
    return word


@lru_cache(maxsize=50_000)
def _place(feature: str) -> Tuple[int, float]:
    digest = int.from_bytes(blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest(), "little")
    return digest >> 1, 1.0 if digest & 1 else -1.0
