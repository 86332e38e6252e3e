"""The words of a text as a search index of our own holds them: lower case, without accents, English ones by their stem.

Source: M. Porter, "An algorithm for suffix stripping", Program 14 (3), 1980, with the one change of his own later
implementations that concerns us (step 2: "bli" for "abli").
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Iterable, List, Sequence, Tuple

__all__ = [
    "stem",
    "stems_of",
    "words_of",
]

_WORD = re.compile(r"[^\W_]+")
_MAX_WORD_CHARACTERS = 100
_VOWELS = frozenset("aeiou")

_Suffixes = Sequence[Tuple[str, str]]
_STEP_2: _Suffixes = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble"),
    ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate"),
    ("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"),
    ("iviti", "ive"), ("biliti", "ble"),
)  # fmt: skip
_STEP_3: _Suffixes = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", ""),
)  # fmt: skip
_STEP_4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ou", "ism", "ate", "iti", "ous",
    "ive", "ize",
)  # fmt: skip


def words_of(text: str) -> List[str]:
    """Return the words of `text` in order, in lower case and without accents."""
    folded = text.lower()
    if not folded.isascii():
        parts = unicodedata.normalize("NFKD", folded)
        folded = "".join(character for character in parts if not unicodedata.combining(character))
    return [word[:_MAX_WORD_CHARACTERS] for word in _WORD.findall(folded)]


def stems_of(words: Iterable[str], language: str) -> List[str]:
    """Return each word's form in the index; only English ones are changed."""
    return [stem(word) for word in words] if language == "english" else list(words)


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Return the stem of an English word in lower case; what is no plain English word stays as it is."""
    if len(word) < 3 or not word.isascii() or not word.isalpha():
        return word
    word = _step_1c(_step_1b(_step_1a(word)))
    word = _replaced(_replaced(word, _STEP_2), _STEP_3)
    return _step_5(_step_4(word))


def _is_consonant(word: str, index: int) -> bool:
    letter = word[index]
    if letter in _VOWELS:
        return False
    return letter != "y" or index == 0 or not _is_consonant(word, index - 1)


def _measure(word: str) -> int:
    """Return how often a vowel is followed by a consonant."""
    kinds = [_is_consonant(word, index) for index in range(len(word))]
    return sum(1 for before, after in zip(kinds, kinds[1:]) if after and not before)


def _has_vowel(word: str) -> bool:
    return any(not _is_consonant(word, index) for index in range(len(word)))


def _ends_double(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _is_consonant(word, len(word) - 1)


def _ends_short(word: str) -> bool:
    """Whether it ends consonant, vowel, consonant, the last not w, x or y."""
    if len(word) < 3 or word[-1] in "wxy":
        return False
    last = len(word) - 1
    return _is_consonant(word, last) and not _is_consonant(word, last - 1) and _is_consonant(word, last - 2)


def _step_1a(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _step_1b(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for ending in ("ed", "ing"):
        if word.endswith(ending) and _has_vowel(word[: -len(ending)]):
            return _repaired(word[: -len(ending)])
    return word


def _repaired(word: str) -> str:
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if _ends_double(word) and word[-1] not in "lsz":
        return word[:-1]
    return word + "e" if _measure(word) == 1 and _ends_short(word) else word


def _step_1c(word: str) -> str:
    return word[:-1] + "i" if word.endswith("y") and _has_vowel(word[:-1]) else word


def _replaced(word: str, suffixes: _Suffixes) -> str:
    for suffix, other in sorted(suffixes, key=lambda pair: -len(pair[0])):
        if word.endswith(suffix):
            head = word[: -len(suffix)]
            return head + other if _measure(head) > 0 else word
    return word


def _step_4(word: str) -> str:
    for suffix in sorted((*_STEP_4, "ion"), key=len, reverse=True):
        if word.endswith(suffix):
            head = word[: -len(suffix)]
            if _measure(head) > 1 and (suffix != "ion" or head.endswith(("s", "t"))):
                return head
            return word
    return word


def _step_5(word: str) -> str:
    if word.endswith("e"):
        head = word[:-1]
        if _measure(head) > 1 or (_measure(head) == 1 and not _ends_short(head)):
            word = head
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word
