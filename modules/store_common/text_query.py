"""From what a person typed to the terms of a search, and from a text found to its snippet. Pure functions.

Any text is a valid query: it is cut into words here, so that no character of it means anything to FTS5 or `tsquery`.
Words that every text has ("the", "when", "did") are dropped from an English question: they would only push long messages
up. PostgreSQL drops them from its index as well, so a question of nothing but such words finds nothing, on both backends.
"""

from __future__ import annotations

import re
from typing import FrozenSet, List

from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_text
from modules.store_common.word_forms import other_forms

__all__ = [
    "LANGUAGES",
    "MAX_QUERY_BYTES",
    "MAX_TERMS",
    "STOP_WORDS",
    "check_language",
    "fts5_query",
    "question_terms",
    "snippet_of",
]

MAX_QUERY_BYTES = 65_536
# More terms than this only cost time: the rarest of a question's first words decide its ranking.
MAX_TERMS = 64
_MAX_TERM_CHARACTERS = 100

_WORD = re.compile(r"[^\W_]+")

#: Languages that both dialects know. PostgreSQL stems and drops stop words in each of them; SQLite stems English only.
LANGUAGES = (
    "simple", "arabic", "armenian", "basque", "catalan", "danish", "dutch", "english", "finnish", "french", "german",
    "greek", "hindi", "hungarian", "indonesian", "irish", "italian", "lithuanian", "nepali", "norwegian", "portuguese",
    "romanian", "russian", "serbian", "spanish", "swedish", "tamil", "turkish", "yiddish",
)  # fmt: skip

#: English function words, and what contractions leave behind ("don't" is "don" and "t").
_FUNCTION_WORDS = """
    a about above after again against all am an and any are as at be because been before being below between both but by
    can could did do does doing don down during each few for from further had has have having he her here hers herself him
    himself his how i if in into is it its itself just ll m me might more most must my myself no nor not now of off on
    once only or other our ours ourselves out over own re s same shall she should so some such t than that the their
    theirs them themselves then there these they this those through to too under until up ve very was we were what when
    where which while who whom why will with would you your yours yourself yourselves
"""
STOP_WORDS: FrozenSet[str] = frozenset(_FUNCTION_WORDS.split())


def check_language(language: str) -> str:
    """Return `language` if it is one of `LANGUAGES`.

    Raises:
        InvalidValueError: it is not.
    """
    if language not in LANGUAGES:
        raise InvalidValueError(f"the search language must be one of {', '.join(LANGUAGES)}")
    return language


def question_terms(text: str, language: str) -> List[str]:
    """Return the terms to look for, in order, without doubles; none when nothing is left to look for.

    In English the other forms of irregular words follow ("buy": "bought"), which no stemmer knows.

    Raises:
        InvalidValueError: the query is not a text, or longer than `MAX_QUERY_BYTES`.
    """
    check_text(text, "query", max_bytes=MAX_QUERY_BYTES)
    words = dict.fromkeys(word[:_MAX_TERM_CHARACTERS] for word in _WORD.findall(text.lower()))
    if language == "english":
        terms = [word for word in words if word not in STOP_WORDS][:MAX_TERMS]
        return list(dict.fromkeys([*terms, *[form for term in terms for form in other_forms(term)]]))[
            :MAX_TERMS
        ]
    return list(words)[:MAX_TERMS]


def fts5_query(terms: List[str], scope: str = "") -> str:
    """Return FTS5's query for "any of these", within the tenant's scope token if one is given."""
    any_of = " OR ".join(f'body : "{term}"' for term in terms)
    return f'scope : "{scope}" AND ({any_of})' if scope else any_of


def snippet_of(text: str, terms: List[str], width: int = 160) -> str:
    """Return about `width` characters of `text` around the first of `terms`, the words found between [ and ].

    A word counts as found when it starts as a term does, up to the term's last two letters: that is near enough to
    stemming to show why a message was found.
    """
    if width < 1:
        raise InvalidValueError("the width of a snippet must be at least 1")
    stems = tuple(term if len(term) < 5 else term[:-2] for term in terms)
    found = (
        [match for match in _WORD.finditer(text) if match.group().lower().startswith(stems)] if stems else []
    )
    start = max(0, found[0].start() - width // 4) if found else 0
    if start and not text[start - 1].isspace():
        start = next((i + 1 for i in range(start, found[0].start()) if text[i].isspace()), found[0].start())
    end = min(len(text), start + width)
    if end < len(text):
        cut = text.rfind(" ", start, end)
        end = cut if (found and cut > found[0].end()) or (not found and cut > start) else end
    parts, position = [], start
    for match in found:
        if match.start() < start or match.end() > end:
            continue
        parts += [text[position : match.start()], "[", match.group(), "]"]
        position = match.end()
    parts.append(text[position:end])
    return ("…" if start else "") + "".join(parts).strip() + ("…" if end < len(text) else "")
