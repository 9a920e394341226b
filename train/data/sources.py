"""What a model learns from: the shipped text, arithmetic, and the project's own pages, split by document.

Every fact is asked in several ways and each way is a document of its own, so that the held-out ones measure whether a
fact is known under a wording that was never seen.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from train.model.tokenizer import Turn

CORPUS = Path(__file__).parent / "corpus"
SPEECHES_PER_DOCUMENT = 8
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are the seedling, a small and friendly assistant of AIVillage.",
    "Answer the question shortly and truly.",
)
ASKED_FOR_CAPITALS = (
    ("What is the capital of {0}?", "The capital of {0} is {1}."),
    ("what is the capital of {0}", "The capital of {0} is {1}."),
    ("What's the capital of {0}?", "The capital of {0} is {1}."),
    ("Which city is the capital of {0}?", "The capital of {0} is {1}."),
    ("Tell me the capital of {0}.", "The capital of {0} is {1}."),
    ("Name the capital of {0}.", "The capital of {0} is {1}."),
    ("Capital of {0}?", "The capital of {0} is {1}."),
    ("Of which country is {1} the capital?", "{1} is the capital of {0}."),
)  # fmt: skip
ASKED_TO_CALCULATE = ("What is {0}?", "How much is {0}?", "{0} = ?", "Calculate {0}.")


@dataclass(frozen=True)
class Document:
    """A text, or a conversation; never both."""

    source: str
    text: str = ""
    turns: tuple[Turn, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all that it says."""
        return len(self.text.encode()) + sum(len(turn.content.encode()) for turn in self.turns)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything it says."""
        body = "\x1e".join((self.text, *(part for turn in self.turns for part in turn)))
        return hashlib.sha256(f"{self.source}\x1e{body}".encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Documents to learn from and documents held out, with the digest of both."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over all fingerprints in order."""
        prints = "".join(document.fingerprint for document in (*self.training, *self.held_out))
        return hashlib.sha256(prints.encode()).hexdigest()


def write_documents(file: BinaryIO, documents: Iterable[Document]) -> None:
    """One JSON object a line."""
    for document in documents:
        file.write(line_of(document).encode() + b"\n")


def line_of(document: Document) -> str:
    """The document as JSON."""
    read = {"source": document.source, "text": document.text, "turns": [list(turn) for turn in document.turns]}
    return json.dumps(read)


def read_documents(path: Path) -> Iterator[Document]:
    """What `write_documents` wrote."""
    with path.open("rb") as file:
        for line in file:
            read = json.loads(line)
            yield Document(read["source"], read["text"], tuple(Turn(*turn) for turn in read["turns"]))


def ask(question: str, answer: str) -> tuple[Turn, Turn]:
    """One question and its answer."""
    return Turn("user", question), Turn("assistant", answer)


def dialogues() -> Iterator[tuple[Turn, Turn]]:
    """The written questions and answers."""
    for entry in (CORPUS / "dialogues.txt").read_text().strip().split("\n\n"):
        questions, _, answer = entry.partition("\n")
        for question in questions.split(" | "):
            yield ask(question, answer)


def capitals() -> Iterator[tuple[Turn, Turn]]:
    """Every capital, asked for in several ways."""
    for line in (CORPUS / "capitals.txt").read_text().splitlines():
        country, _, city = line.partition(": ")
        for question, answer in ASKED_FOR_CAPITALS:
            yield ask(question.format(country, city), capitalised(answer.format(country, city)))


def capitalised(sentence: str) -> str:
    """With a capital first letter, the rest as it is."""
    return sentence[:1].upper() + sentence[1:]


def sums() -> Iterator[tuple[Turn, Turn]]:
    """Additions and subtractions up to ten, each asked in two of the ways."""
    made = [(f"{a} + {b}", a + b) for a in range(11) for b in range(11)]
    made += [(f"{a} - {b}", a - b) for a in range(11) for b in range(a + 1)]
    for i, (expression, value) in enumerate(made):
        for way in (i % 4, (i + 1 + i // 4 % 3) % 4):
            yield ask(ASKED_TO_CALCULATE[way].format(expression), f"{expression} = {value}")


def conversations(exchanges: Sequence[tuple[Turn, Turn]], seed: int) -> Iterator[tuple[Turn, ...]]:
    """The exchanges again, one to four in a row, some after a system prompt, some asked without care for spelling."""
    chance = random.Random(seed)
    shuffled = chance.sample(exchanges, len(exchanges))
    while shuffled:
        size = chance.randint(1, 4)
        some, shuffled = shuffled[:size], shuffled[size:]
        system = (Turn("system", chance.choice(SYSTEM_PROMPTS)),) if size == 1 or chance.random() < 0.5 else ()
        yield system + tuple(turn for question, answer in some for turn in (carelessly(question, chance), answer))


def carelessly(question: Turn, chance: random.Random) -> Turn:
    """Every fourth question without capitals and without its last mark."""
    if chance.random() < 0.75:
        return question
    return Turn(question.role, question.content.lower().rstrip("?!."))


def shakespeare() -> Iterator[str]:
    """Stretches of a play, a few speeches each."""
    speeches = (CORPUS / "shakespeare.txt").read_text().strip().split("\n\n")
    for start in range(0, len(speeches), SPEECHES_PER_DOCUMENT):
        yield "\n\n".join(speeches[start : start + SPEECHES_PER_DOCUMENT])


def project_pages(root: Path) -> Iterator[str]:
    """Sections of the project's README and docs, where they are present."""
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        if page.is_file():
            yield from (section.strip() for section in page.read_text().split("\n## ") if section.strip())


def is_held_out(document: Document, share: float) -> bool:
    """Decided by the document's own content, so that it stays on its side when others come or go."""
    return int(document.fingerprint[:8], 16) < share * 0x1_0000_0000


def corpus(root: Path, held_out: float, seed: int) -> Corpus:
    """Everything, split. `held_out` is the share (0 to 1) of documents that no step sees."""
    asked = {"dialogue": dialogues(), "capitals": capitals(), "sums": sums()}
    documents = [Document(source, turns=turns) for source, exchanges in asked.items() for turns in exchanges]
    documents += [Document("shakespeare", text=text) for text in shakespeare()]
    documents += [Document("project", text=text) for text in project_pages(root)]
    documents = list({document.fingerprint: document for document in documents}.values())
    training = [document for document in documents if not is_held_out(document, held_out)]
    seen = [(question, answer) for document in training if document.turns for question, answer in [document.turns]]
    training += [Document("conversation", turns=turns) for turns in conversations(seen, seed)]
    return Corpus(tuple(training), tuple(document for document in documents if is_held_out(document, held_out)))
