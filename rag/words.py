"""Words that carry meaning. Pure."""

import re
from collections.abc import Set as AbstractSet

WORD = re.compile(r"[^\W_]+(?:['’&/.-][^\W_]+)*")
_STOP = """
    a about after again all also am an and any are as at be because been before being between both but by can could did
    do does down during each few for from further had has have he her here his how i if in into is it its just may me
    more most must my no nor not now of off on once one only or other our out over own same she should so some such than
    that the their them then there these they this those through to too two under up use used uses using very was we
    were what when where which while who whom whose why will with within without would you your
"""
STOP = frozenset(_STOP.split())


def words(text: str) -> list[str]:
    """The words of a text but for those that every text has, in lower case."""
    return [word for word in WORD.findall(text.lower()) if word not in STOP]


def stem(word: str) -> str:
    """A word without its commonest English endings, so that `layers` meets `layer`."""
    for ending, least in (("ings", 4), ("ing", 4), ("edly", 4), ("ed", 4), ("ies", 3), ("es", 4), ("s", 3), ("e", 4)):
        if word.endswith(ending) and len(word) - len(ending) >= least and not word.endswith("ss"):
            return word[: -len(ending)] + ("y" if ending == "ies" else "")
    return word


def stems(text: str) -> AbstractSet[str]:
    """The distinct stems of a text's words."""
    return {stem(word) for word in words(text)}


def coverage(asked: AbstractSet[str], text: str) -> float:
    """The share of the asked stems that the text holds, 0 to 1."""
    return len(asked & stems(text)) / len(asked) if asked else 0.0
