"""The checker of a design that verifies: tools judge what an answer states. It knows no reference answers. Pure."""

import re
from datetime import datetime

from train.tools import Call, execute

EQUATION = re.compile(r"(-?\d+(?:\s*[-+*/]\s*-?\d+)+)\s*=\s*(-?\d+(?:\.\d+)?)")  # "3 + 4 = 7"
NUMBER = re.compile(r"\d+")
CAPITAL = re.compile(r"capital of (?P<country>[^?.!]+?)(?: is [^?!]+)?[.!]*$", re.IGNORECASE)


def verified(question: str, answer: str, now: datetime) -> bool | None:
    """Whether the tools agree with what the answer states, and it is about what the question names.

    Equations go to the calculator, capitals to the table of capitals. None where it states nothing that a tool knows.
    """
    judged = [verdict for check in (equations, capital) if (verdict := check(question, answer, now)) is not None]
    return all(judged) if judged else None


def equations(question: str, answer: str, now: datetime) -> bool | None:
    """Every stated equation holds, and one has the question's numbers in their order."""
    stated = EQUATION.findall(answer)
    if not stated:
        return None
    for expression, value in stated:
        worked_out = execute(Call("calculator", {"expression": expression}), now)
        if not worked_out.right or float(worked_out.text) != float(value):
            return False
    asked = NUMBER.findall(question)
    return not asked or any(NUMBER.findall(expression) == asked for expression, _ in stated)


def capital(question: str, answer: str, now: datetime) -> bool | None:
    """The country that the answer names has a capital that stands in the answer, and the question names one of them."""
    if (stated := CAPITAL.search(answer)) is None:
        return None
    country = stated["country"].strip()
    known = execute(Call("capital", {"country": country}), now)
    named = any(word.lower().removeprefix("the ") in question.lower() for word in (country, known.text))
    return known.right and known.text.lower() in answer.lower() and named
