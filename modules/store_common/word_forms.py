"""Forms of irregular English words, for questions: "when did she buy it" is answered by "I bought it".

Regular endings are the stemmer's business. Measured on 1,200 questions over conversations (docs/semantic-search.md):
evidence recall@10 of full-text search 0.625 without and 0.634 with these.
"""

from __future__ import annotations

from typing import Dict, Tuple

__all__ = ["other_forms"]

# Each line of forms belongs together. Left out: words whose forms are stop words, and forms that mean something else
# more often ("saw" is kept, "ground" of "grind" is not).
_GROUPS = """
    become became|begin began begun|bend bent|bite bit bitten|blow blew blown|break broke broken|bring brought
    build built|buy bought|catch caught|choose chose chosen|come came|deal dealt|dig dug|draw drew drawn|dream dreamt
    drink drank drunk|drive drove driven|eat ate eaten|fall fell fallen|feed fed|feel felt|fight fought|find found
    fly flew flown|forget forgot forgotten|forgive forgave forgiven|freeze froze frozen|get got gotten|give gave given
    go went gone|grow grew grown|hang hung|hear heard|hide hid hidden|hold held|keep kept|know knew known|lay laid
    lead led|learn learnt|leave left|lend lent|light lit|lose lost|make made|mean meant|meet met|overcome overcame
    pay paid|ride rode ridden|ring rang rung|rise rose risen|run ran|say said|see saw seen|seek sought|sell sold
    send sent|shake shook shaken|shoot shot|sing sang sung|sink sank sunk|sit sat|sleep slept|speak spoke spoken
    spend spent|stand stood|steal stole stolen|stick stuck|strike struck|sweep swept|swim swam swum|swing swung
    take took taken|teach taught|tear tore torn|tell told|think thought|throw threw thrown|understand understood
    wake woke woken|wear wore worn|win won|write wrote written
    child children|foot feet|knife knives|life lives|man men|mouse mice|person people|tooth teeth|wife wives|woman women
"""
_FORMS: Dict[str, Tuple[str, ...]] = {
    word: tuple(group.split())
    for line in _GROUPS.strip().splitlines()
    for group in line.strip().split("|")
    for word in group.split()
}
_REGULAR_ENDINGS = ("s", "es", "ing")


def other_forms(word: str) -> Tuple[str, ...]:
    """Return the irregular forms of a word's group, the word itself perhaps among them; nothing for a regular word.

    Args:
        word: In lower case; may have a regular ending ("buys", "buying").
    """
    if word in _FORMS:
        return _FORMS[word]
    for ending in _REGULAR_ENDINGS:
        if word.endswith(ending):
            stem = word[: -len(ending)]
            found = _FORMS.get(stem) or (_FORMS.get(stem + "e") if ending == "ing" else None)
            if found:
                return found
    return ()
