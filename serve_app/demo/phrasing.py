"""Ways in which people change a question and mean the same. Drawn anew each time a question is trained."""

import re
from pathlib import Path
from random import Random

import yaml
from pydantic import Field

from serve_app.config import DEMO_DIRECTORY
from serve_app.settings import Closed


class Frame(Closed):
    """A kind of question and the forms that it may take."""

    pattern: str
    """A regular expression with one group, matched without regard to case."""
    forms: list[str] = Field(min_length=1)
    """With `{0}` for the group."""


class Phrasing(Closed):
    """The content of phrasing.yaml."""

    openings: list[str]
    """Put before a question."""
    endings: list[str]
    """Put after it."""
    frames: list[Frame]
    """The first that matches is used."""
    synonyms: list[tuple[str, str]]
    """Pairs of which the first may become the second."""
    droppable: frozenset[str]
    """Words that may be missing."""
    system_prompts: list[str]
    """What a conversation may begin with."""

    def vary(self, question: str, random: Random) -> str:
        """The question in other words, or as it is."""
        if len(question) > 120 or random.random() < 0.35:
            return question
        if random.random() < 0.35:
            question = self._reframe(question, random)
        if random.random() < 0.25:
            old, new = random.choice(self.synonyms)
            question = re.sub(rf"\b{re.escape(old)}\b", new, question, count=1)
        if random.random() < 0.3:
            question = random.choice(self.openings) + (question if random.random() < 0.4 else _lower_first(question))
        if random.random() < 0.2:
            question = question.rstrip("?.") + random.choice(self.endings)
        if random.random() < 0.1:
            question = self._drop_word(question, random)
        if random.random() < 0.08:
            question = _mistype(question, random)
        return _write_loosely(question, random)

    def vary_around(self, question: str, random: Random) -> str:
        """Other words around a question whose own words are arguments and must stay."""
        choice = random.random()
        if choice < 0.5:
            return question
        if choice < 0.75:
            return random.choice(self.openings) + question
        return question.rstrip("?.") + random.choice(["", "?", ".", " please", ", please", " Thanks."])

    def _reframe(self, question: str, random: Random) -> str:
        bare = question.rstrip("?.! ")
        for frame in self.frames:
            if found := re.fullmatch(frame.pattern, bare, re.IGNORECASE):
                text = random.choice(frame.forms).format(_lower_first(found[1]))
                text = text[0].upper() + text[1:] if random.random() < 0.6 else text
                return text + random.choice(["?", "?", ".", ""])
        return question

    def _drop_word(self, question: str, random: Random) -> str:
        words = question.split(" ")
        small = [place for place, word in enumerate(words) if word.lower() in self.droppable]
        if len(words) > 3 and small:
            del words[random.choice(small)]
        return " ".join(words)


def read_phrasing(file: Path = DEMO_DIRECTORY / "phrasing.yaml") -> Phrasing:
    """The ways of phrasing.

    Raises:
        ValueError: pydantic's error for a wrong field.
    """
    return Phrasing.model_validate(yaml.safe_load(file.read_text()))


def _write_loosely(question: str, random: Random) -> str:
    style = random.random()
    if style < 0.3:
        return question.lower()
    if style < 0.45:
        return question.rstrip("?.!")
    if style < 0.55:
        return question.lower().rstrip("?.!")
    if style < 0.62:
        return question[0].upper() + question[1:] + ("" if question[-1] in "?.!" else random.choice("?."))
    return question.upper() if style > 0.99 else question


def _lower_first(text: str) -> str:
    first = text.split(" ", 1)[0]
    return text if first == "I" or any(letter.isupper() for letter in first[1:]) else text[0].lower() + text[1:]


def _mistype(question: str, random: Random) -> str:
    """Two letters swapped, or one lost or doubled, in one long word."""
    words = question.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return question
    place = random.choice(long)
    word, at = words[place], random.randint(1, len(words[place]) - 3)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    words[place] = random.choice([swapped, swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]])
    return " ".join(words)
